#include "cli/formats.h"

#include "core/os.h"
#include "model/convert.h"

bool cli_parse_formats(const struct cli_cmd *cmd, const struct cli_formats *f, struct mdl_recipe *r)
{
    char names[256];

    if (!mdl_recipe_parse(r, f->type)) {
        cli_usage(cmd, "'%s' is not one of %s", f->type, mdl_recipe_names(names, sizeof(names)));
        return false;
    }
    r->has_experts = f->experts != NULL;
    r->has_dense = f->dense != NULL;
    return (!f->experts || cli_parse_type(cmd, f->experts, &r->experts)) &&
           (!f->dense || cli_parse_type(cmd, f->dense, &r->dense));
}

int cli_write_formats(const struct cli_cmd *cmd, const struct cli_formats *f, const char *in, const char *out,
                      const char *what)
{
    struct cli_progress bar = {.what = what};
    struct mdl_recipe recipe;
    const struct mdl_convert_params p = {.in = in,
                                         .out = out,
                                         .recipe = &recipe,
                                         .imatrix = f->imatrix,
                                         .progress = cli_progress_step,
                                         .progress_user = &bar};
    struct vkmoe_err err;
    enum vkmoe_status st;

    if (!cli_parse_formats(cmd, f, &recipe))
        return CLI_USAGE;
    cor_catch_interrupt(); /* so that no temporary file is left */
    st = mdl_convert(&p, &err);
    cli_progress_end(&bar);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}
