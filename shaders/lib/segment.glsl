/* Where an expert's weights stand. With SEG_ARRAY all segments of the pool are bound as an array, indexed by
 * a value that is uniform in the workgroup; else one segment is bound, and other slots are left to their own
 * dispatch.
 * Before inclusion: the push block as `p` (push_expert), SEG_BINDING, and the constants of SPEC_EXPERT. */
#ifndef LIB_SEGMENT_GLSL
#define LIB_SEGMENT_GLSL

#include "lib/block_pair.glsl"
#include "shared/step.h"

#ifdef SEG_ARRAY
layout(std430, set = 0, binding = SEG_BINDING) readonly buffer Segments {
    uint data[];
} segments[N_SEGS];
layout(std430, set = 0, binding = SEG_BINDING) readonly buffer Segments4 {
    uvec4 data[];
} segments4[N_SEGS];
uint segment_index;
#define LOAD_WORD(i) segments[segment_index].data[i]
#define LOAD_WORD4(i) segments4[segment_index].data[i]
#ifdef USE_LANES
layout(scalar, set = 0, binding = SEG_BINDING) readonly buffer SegmentsQ4 {
    pair_q4 data[];
} segments_q4[N_SEGS];
layout(scalar, set = 0, binding = SEG_BINDING) readonly buffer SegmentsQ8 {
    pair_q8 data[];
} segments_q8[N_SEGS];
#define LOAD_PAIR_Q4(i) segments_q4[segment_index].data[i]
#define LOAD_PAIR_Q8(i) segments_q8[segment_index].data[i]
#endif
#else
layout(std430, set = 0, binding = SEG_BINDING) readonly buffer Segment {
    uint data[];
} segment;
layout(std430, set = 0, binding = SEG_BINDING) readonly buffer Segment4 {
    uvec4 data[];
} segment4;
#define LOAD_WORD(i) segment.data[i]
#define LOAD_WORD4(i) segment4.data[i]
#ifdef USE_LANES
layout(scalar, set = 0, binding = SEG_BINDING) readonly buffer SegmentQ4 {
    pair_q4 data[];
} segment_q4;
layout(scalar, set = 0, binding = SEG_BINDING) readonly buffer SegmentQ8 {
    pair_q8 data[];
} segment_q8;
#define LOAD_PAIR_Q4(i) segment_q4.data[i]
#define LOAD_PAIR_Q8(i) segment_q8.data[i]
#endif
#endif
#define WORDS_ALIGNED (ALIGNED >= 1u)
#define WORDS_WIDE (ALIGNED >= 2u)

bool is_shared(uint slot)
{
    return SHARED != 0u && slot == SLOT_SHARED;
}

/* Makes the segment of `slot` the one LOAD_WORD reads and sets base to the byte where the slot starts.
 * False: nothing to do here (no slot, or the slot of another dispatch). */
bool segment_open(uint slot, out uint base)
{
    bool none = slot == NONE;

#ifdef SEG_ARRAY
    if (is_shared(slot)) {
        base = 0u;
        segment_index = N_SEGS - 1u;
        return true;
    }
#endif

    /* Drivers may compute addresses in lanes that have left: the index must name a segment always. */
    slot = none ? 0u : slot;
    base = slot % SLOTS_PER_SEG * SLOT_STRIDE;
#ifdef SEG_ARRAY
    segment_index = slot / SLOTS_PER_SEG;
    return !none;
#else
    return !none && slot / SLOTS_PER_SEG == p.seg;
#endif
}

#endif
