/* Sanitizer builds only: libraries stay loaded to the end, so that a leak inside a driver keeps the driver's
 * name in its report and tests/lsan.supp can tell it from ours. Exported: the Vulkan loader finds this one.
 */
int dlclose(void *handle);

__attribute__((visibility("default"))) int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
