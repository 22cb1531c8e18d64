/* Names of control tokens that say what a token is for, where the file does not. */
#include "model/tokenizer_impl.h"

#include <string.h>

static bool is_one_of(const char *const *names, size_t n, const char *s)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i], s))
            return true;
    return false;
}

bool mdl_is_end_name(const char *s)
{
    static const char *const names[] = {"<|endoftext|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<|eot_id|>",
                                        "<|eom_id|>",
                                        "</s>",
                                        "<|return|>",
                                        "<|call|>",
                                        "<|end_of_text|>",
                                        "<end_of_turn>",
                                        "<|flush|>",
                                        "<|calls|>",
                                        "<EOT>",
                                        "_<EOT>",
                                        "[EOT]",
                                        "[EOS]",
                                        "<eos>",
                                        "<turn|>",
                                        "[e~[",
                                        "<end_of_utterance>",
                                        "<|tool_response>",
                                        "<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>"};

    return is_one_of(names, COR_COUNT(names), s);
}

bool mdl_is_turn_mark(const char *s)
{
    static const char *const names[] = {"<s>",
                                        "<|begin_of_text|>",
                                        "<|im_start|>",
                                        "<|start|>",
                                        "<|start_header_id|>",
                                        "<|end_header_id|>",
                                        "<|message|>",
                                        "<|start_of_role|>",
                                        "<|end_of_role|>",
                                        "<|channel|>",
                                        "<|user|>",
                                        "<|assistant|>",
                                        "<|system|>",
                                        "[INST]",
                                        "[/INST]",
                                        "<start_of_turn>"};

    return mdl_is_end_name(s) || is_one_of(names, COR_COUNT(names), s);
}
