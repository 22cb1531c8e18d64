/* A short text on a small expert pool, for tests of what goes wrong: every feed that succeeds must give the
 * bits of full residency. */
#ifndef TEST_HAZARD_H
#define TEST_HAZARD_H

#include "support/device.h"

enum { HAZARD_PROMPT = 10, HAZARD_DECODE = 3, HAZARD_TOKENS = HAZARD_PROMPT + HAZARD_DECODE };

struct hazard_text {
    int32_t tokens[HAZARD_TOKENS];
    float *want; /* (1 + HAZARD_DECODE, vocab), with every expert resident */
    uint32_t vocab;
    const uint32_t *mask; /* of the session that reads it; NULL: none */
};

struct hazard_params {
    const char *caps, *path; /* path NULL: emo-nano in BF16 */
    uint32_t percent;        /* of the bank above the floor */
    bool all;                /* full residency instead */
    bool automatic;          /* the pool follows the device's free memory */
    bool check_slots, validation, fake_transfer;
};

/* Cases with the same caps share a device, whose kernels are compiled once. */
void hazard_setup(void);
void hazard_teardown(void); /* fails when memory of the host is left */

/* Random ids; mask: n_layers x ceil(n_experts / 32) words that outlive the text, or NULL. */
void hazard_text_make(struct hazard_text *t, uint64_t seed, const uint32_t *mask);
void hazard_text_free(struct hazard_text *t);

/* emo-nano on a device, with a pool that begins empty. */
void hazard_open(struct device_case *c, const struct hazard_params *p);
void hazard_close(struct device_case *c);
/* A device of one's own, for those that die: hazard_load and device_close. */
void hazard_device(struct device_case *c, const struct hazard_params *p);
void hazard_load(struct device_case *c, const struct hazard_params *p);
bool hazard_slow_driver(void); /* tests do less there */

/* A session for the text, with its mask. */
struct run_session *hazard_session(struct device_case *c, const struct hazard_text *t, bool slow);
/* Feed number i: 0 the prompt, then one token each. Wrong bits fail the test. */
enum vkmoe_status hazard_feed(struct run_session *s, const struct hazard_text *t, uint32_t i,
                              struct vkmoe_err *err);
/* All feeds; *fed: of them, those that went well. */
enum vkmoe_status hazard_read(struct run_session *s, const struct hazard_text *t, uint32_t *fed,
                              struct vkmoe_err *err);
/* Slots hold what they should, and a new session reads the text without an error. */
void hazard_sound(struct device_case *c, const struct hazard_text *t);
/* One line that says something, and the session says it again and again. */
void hazard_latched(struct run_session *s, const struct hazard_text *t, const struct vkmoe_err *err);

#endif
