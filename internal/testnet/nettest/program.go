// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nettally/nettally/internal/testnet/need"
)

// AgentProgram returns the program of an agent, for a container's image. It needs no
// libraries, and is built once in a process: to link it takes a second. Requires go.
func AgentProgram(tb testing.TB) []byte {
	tb.Helper()
	need.Commands(tb, "go")
	return Must(agentProgram())(tb)
}

var agentProgram = sync.OnceValues(func() (program []byte, err error) {
	folder, err := os.MkdirTemp("", "nettally-agent-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "agent")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/nettally/nettally/internal/testnet/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build agent: %w: %s", err, out)
	}
	return os.ReadFile(path)
})
