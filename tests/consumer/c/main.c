/* A program that uses the installed library: version, devices, and the error of a file that is not there. */
#include <stdio.h>
#include <string.h>

#include <vkmoe.h>

int main(void)
{
    struct vkmoe_err err = {VKMOE_OK, ""};
    vkmoe_context *ctx = NULL;
    vkmoe_device *dev = NULL;
    vkmoe_model *model = NULL;
    int bad = 1;

    if (vkmoe_open(&ctx, NULL, &err) != VKMOE_OK || vkmoe_device_open(&dev, ctx, NULL, &err) != VKMOE_OK)
        fprintf(stderr, "%s\n", err.message);
    else if (vkmoe_model_open(&model, dev, "no such file.gguf", NULL, &err) != VKMOE_ERR_IO || model)
        fprintf(stderr, "a missing model gave status %d: %s\n", (int)err.status, err.message);
    else if (!strstr(err.message, "no such file.gguf"))
        fprintf(stderr, "the error does not name the file: %s\n", err.message);
    else
        bad = 0;
    printf("vkmoe %s, %u devices, %s\n", vkmoe_version(), ctx ? vkmoe_device_count(ctx) : 0,
           vkmoe_status_text(VKMOE_OK));
    vkmoe_device_close(dev);
    vkmoe_close(ctx);
    return bad;
}
