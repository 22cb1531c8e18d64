/* The one place where volk's functions are compiled. Everything else includes gpu/internal.h. */
#define VOLK_IMPLEMENTATION
#include <volk.h>
