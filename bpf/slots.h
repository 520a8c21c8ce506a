// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* The slots that the classifiers and the program for connections share. */

/* Slots have the numbers of a classid. They share chunks of rows, so that memory follows the
 * attachments.
 */
enum capacity { SLOTS_PER_CHUNK = 64, ROWS_PER_SLOT = 2, SLOTS = 65536 };

/* row_in returns the nth row of a slot on this CPU, NULL if user space has made no chunk for it. */
static __always_inline void *row_in(void *chunks, __u32 slot, __u32 nth)
{
	__u32 index = slot / SLOTS_PER_CHUNK;
	void *chunk = bpf_map_lookup_elem(chunks, &index);

	if (!chunk)
		return NULL;
	index = bpf_get_smp_processor_id() * SLOTS_PER_CHUNK + slot % SLOTS_PER_CHUNK;
	index = index * ROWS_PER_SLOT + nth;
	return bpf_map_lookup_elem(chunk, &index);
}
