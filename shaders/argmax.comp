/* Index of the largest finite logit, the lowest of equals, to the mailbox; NONE when none is finite.
 * Grid: one workgroup. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_ARGMAX(SPEC_X)
layout(local_size_x_id = 0) in;

/* bits of floats */
layout(std430, set = 0, binding = 0) readonly restrict buffer Logits { uint data[]; } logits;
layout(std430, set = 0, binding = 1) writeonly restrict buffer Mail { uint data[]; } mail;

#include "lib/math.glsl"

shared uint keys[WG], indices[WG];

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint key = KEY_NONE, index = NONE;

    for (uint i = lane; i < N; i += WG) {
        uint bits = logits.data[i];
        uint k = bits_finite(bits) ? sort_key(bits) : KEY_NONE;
        if (k > key) {
            key = k;
            index = i;
        }
    }
    keys[lane] = key;
    indices[lane] = index;
    barrier();
    if (lane != 0u)
        return;
    for (uint i = 1u; i < WG; i++) {
        if (keys[i] > key || (keys[i] == key && indices[i] < index)) {
            key = keys[i];
            index = indices[i];
        }
    }
    mail.data[MAIL_ARGMAX] = index;
}
