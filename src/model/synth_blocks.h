/* Random blocks written as they are, without an encoder: gigabytes at the speed of the disk. */
#ifndef MDL_SYNTH_BLOCKS_H
#define MDL_SYNTH_BLOCKS_H

#include "model/quant.h"

/* False: the type has no blocks. */
bool mdl_synth_has_blocks(enum mdl_type type);
/* n blocks whose values have mean 0 and about that root mean square, which is positive; the same bytes on
 * every machine. */
void mdl_synth_blocks(uint8_t *dst, uint64_t n, enum mdl_type type, double rms, uint64_t *state);

#endif
