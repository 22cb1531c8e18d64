// variants: arr=SEG_ARRAY
/* Compares the first and last words of slots with what the file has there: a debug check of the pool.
 * Grid: any (x, y) with at least n workgroups; workgroup y * gridsize.x + x takes that entry.
 * Result: number of entries that differ, lowest of them; the host sets them to 0 and NONE before.
 * Binding 2: the segment p.seg, entries of other segments are skipped; with SEG_ARRAY all segments. Test:
 * test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_TAGS(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_tags p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer List { uint data[]; } list;
layout(std430, set = 0, binding = 1) restrict buffer Result { uint data[]; } result;

#define SHARED 0u /* slots only */
#define SEG_BINDING 2
#define ALIGNED 1u
#include "lib/segment.glsl"

shared uint differs;

void main()
{
    uint entry = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    uint base;

    if (entry >= p.n)
        return;
    uint at = entry * TAG_WORDS;
    if (!segment_open(list.data[at + TAG_SLOT], base))
        return;
    if (gl_LocalInvocationIndex == 0u)
        differs = 0u;
    barrier();
    uint n_first = list.data[at + TAG_N_FIRST];
    uint n = n_first + list.data[at + TAG_N_LAST];
    uint last = list.data[at + TAG_LAST_OFF] / 4u;
    for (uint i = gl_LocalInvocationIndex; i < n; i += WG) {
        uint word = base / 4u + (i < n_first ? i : last + i - n_first);
        if (LOAD_WORD(word) != list.data[at + TAG_FIRST + i])
            atomicOr(differs, 1u);
    }
    barrier();
    if (gl_LocalInvocationIndex == 0u && differs != 0u) {
        atomicAdd(result.data[0], 1u);
        atomicMin(result.data[1], entry);
    }
}
