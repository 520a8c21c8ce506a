// SPDX-License-Identifier: Apache-2.0

package bpf

// The objects are committed, so that building needs no clang; `make generate`
// installs what this line needs. Instruction set v3 (Linux 5.1) has 32-bit arithmetic,
// without which each length costs two shifts more.
//go:generate go tool bpf2go -go-package bpf -cc clang-16 -strip llvm-strip-16 -target bpfel,bpfeb -type row -type cpu_troubles -type slot -type direction -type family -type protocol -type cell -type plain -type trouble -type capacity -type slot_flags classifier classifier.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -go-package bpf -cc clang-16 -strip llvm-strip-16 -target bpfel,bpfeb -type tcp_counter -type tcp_row tcp tcp.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -go-package bpf -cc clang-16 -strip llvm-strip-16 -target bpfel,bpfeb -type socket_counter -type socket_row sockets sockets.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
//go:generate go tool bpf2go -go-package bpf -cc clang-16 -strip llvm-strip-16 -target bpfel,bpfeb -type request_counter -type method -type resync -type query_type -type requests requests requests.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
