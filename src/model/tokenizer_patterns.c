/* Pre-tokenizers by name: which regular expressions cut text into pieces, one after another, and what else
 * the name says. Patterns are for PCRE2 and do not backtrack. Knows nothing of how they are applied. */
#include "model/tokenizer_impl.h"

#include <stdio.h>
#include <string.h>

#include "core/alloc.h"

/* Unicode White_Space, which is what \s means in the original implementations (PCRE2's \s also has U+180E).
 */
#define WS_BUT_NL                                                                                            \
    "\\x09\\x0B\\x0C\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{" \
    "3000}"
#define WS WS_BUT_NL "\\r\\n"
/* `\s+(?!\S)|\s+`. The lookahead gives back at most one character. */
#define WS_TAIL "[" WS "]+(?![^" WS "])|[" WS "]++"
/* `\s*[\r\n]+` ends behind the last line break of a run of white space (and so does `\s*[\r\n]`); the
 * repeated possessive group says the same without trying every shorter run, so that a match costs time linear
 * in its length and no stack. */
#define NL_RUN "(?:[" WS_BUT_NL "]*+[\\r\\n]++)++"

#define ENGLISH   "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD      "[^\\r\\n\\p{L}\\p{N}]?\\p{L}++"
#define SIGNS     " ?[^" WS "\\p{L}\\p{N}]++"
#define THREE     "\\p{N}{1,3}+"
#define TO_THE_NL "[\\r\\n]*+"

/* As tokenizer.json writes them: what the converter recognises. */
#define CL100K_REGEX                                                                                         \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2_REGEX "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

#define CL100K(numbers) ENGLISH "|" WORD "|" numbers "|" SIGNS TO_THE_NL "|" NL_RUN "|" WS_TAIL
#define GPT2            "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}++| ?\\p{N}++|" SIGNS "|" WS_TAIL

/* o200k's words, `[UPPER]*[LOWER]+` before `[UPPER]+[LOWER]*`, where UPPER is Lu Lt Lm Lo M and LOWER is
 * Ll Lm Lo M: a run of UPPER goes on with LOWER when a Ll follows it, else it ends behind its last character
 * that is in both, and without such a one it is taken whole. `both` may exclude characters by a lookahead. */
#define CASED(no, suffix)                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?(?:(?:[\\p{Lu}\\p{Lt}]*+(?:" no "[\\p{Lm}\\p{Lo}\\p{M}])++)*+" \
    "[\\p{Lu}\\p{Lt}]*+\\p{Ll}(?:" no "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}])*+"                  \
    "|(?:[\\p{Lu}\\p{Lt}]*+(?:" no "[\\p{Lm}\\p{Lo}\\p{M}])++)++)" suffix                 \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}]++" suffix
#define O200K(numbers, suffix) CASED("", suffix) "|" numbers "|" SIGNS "[\\r\\n/]*+|" NL_RUN "|" WS_TAIL
#define NOT_HAN                "(?!\\p{sc:Han})"

/* DeepSeek's: punctuation takes the Latin word behind it; digits are in no alternative. */
#define SIGN_WORD "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]++"
#define MARK_WORD "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]++"
#define V3_MAIN   SIGN_WORD "|" MARK_WORD "| ?[\\p{P}\\p{S}]++" TO_THE_NL "|" NL_RUN "|" WS_TAIL
#define V3_CJK    "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{30FF}]++"
#define LLM_CJK   "[\\x{800}-\\x{9FA5}\\x{AC00}-\\x{D7FF}]++"
/* Letters with case, of the Unicode version its author had. */
#define LLM_LETTERS                                                                                   \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"   \
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}"             \
    "\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}"   \
    "\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}"   \
    "\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}" \
    "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}"  \
    "\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}"  \
    "\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}" \
    "\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}"   \
    "\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}"            \
    "\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"            \
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"  \
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}" \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}"                \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}"            \
    "\\x{1E900}-\\x{1E943}"

#define YOUTU_CJK                                                                        \
    "[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]++|"                                        \
    "[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}\\x{2014}\\x{FF1A}\\x{FF1B}" \
    "\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]++|[\\x{3105}-\\x{312F}]++|" V3_CJK
/* U+8C48, not U+F900, begins the third range: so llama.cpp has it. */
#define AFMOE_ASIAN                                                                                    \
    "[\\x{4E00}-\\x{9FFF}\\x{3400}-\\x{4DBF}\\x{8C48}-\\x{D7FF}\\x{E000}-\\x{FAFF}\\x{3040}-\\x{30FF}" \
    "\\x{FF65}-\\x{FF9F}\\x{2F00}-\\x{2FDF}\\x{E40}-\\x{EFF}\\x{1780}-\\x{17FF}\\x{1000}-\\x{109F}"    \
    "\\x{AA60}-\\x{AA7F}\\x{A9E0}-\\x{A9FF}\\x{1100}-\\x{11FF}]++"
/* Digits that no word character follows. A run is looked at once, from its start. */
#define WHOLE_NUMBER "(?<!\\p{Nd})\\p{Nd}++(?![\\p{L}\\p{M}\\p{N}\\p{Pc}])"

static const struct mdl_cut afmoe[] = {
    {"\\p{N}++", true}, {AFMOE_ASIAN, false}, {V3_MAIN, false}, {NULL, false}};
static const struct mdl_cut cl100k[] = {{CL100K(THREE), false}, {NULL, false}};
static const struct mdl_cut cohere2[] = {
    {WHOLE_NUMBER, true}, {O200K(THREE, ENGLISH "?"), false}, {NULL, false}};
static const struct mdl_cut deepseek_coder[] = {{"[\\r\\n]", false},
                                                {"[" WS "]?\\p{L}++", false},
                                                {"[" WS "]?\\p{P}++", false},
                                                {LLM_CJK, false},
                                                {"\\p{N}", false},
                                                {NULL, false}};
static const struct mdl_cut deepseek_llm[] = {
    {"[\\r\\n]", false},
    {"[" WS "]?[" LLM_LETTERS "]++", false},
    {"[" WS "]?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]++",
     false},
    {"(?<![" WS "])[" WS "]++\\z", false},
    {LLM_CJK, false},
    {"\\p{N}++", false},
    {NULL, false}};
static const struct mdl_cut deepseek_v3[] = {
    {THREE, false}, {V3_CJK, false}, {V3_MAIN, false}, {NULL, false}};
static const struct mdl_cut default_[] = {
    {"[\\p{P}$+<=>^~|]++", false}, {GPT2, false}, {"\\p{N}++", false}, {"[0-9]{3}", false}, {NULL, false}};
static const struct mdl_cut digits_gpt2[] = {{"\\p{N}", false}, {GPT2, false}, {NULL, false}};
static const struct mdl_cut exaone_moe[] = {
    {ENGLISH "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}\\p{M}*+(?: ?\\p{L}\\p{M}*+)*+|\\p{N}|" SIGNS "[\\r\\n]?+|" NL_RUN
             "|" WS_TAIL,
     false},
    {NULL, false}};
static const struct mdl_cut falcon[] = {
    {"[\\p{P}$+<=>^~|`]++", false}, {GPT2, false}, {"[0-9]{3}", false}, {NULL, false}};
static const struct mdl_cut gpt2[] = {{GPT2, false}, {NULL, false}};
static const struct mdl_cut kimi[] = {
    {"\\p{sc:Han}++|" CASED(NOT_HAN, ENGLISH "?") "|" THREE "|" SIGNS TO_THE_NL "|" NL_RUN "|" WS_TAIL,
     false},
    {NULL, false}};
static const struct mdl_cut laguna[] = {{"[^\\n]++|\\n++", false}, {CL100K("\\p{N}"), false}, {NULL, false}};
static const struct mdl_cut minicpm5[] = {{THREE, false}, {CL100K("\\p{N}++"), false}, {NULL, false}};
static const struct mdl_cut o200k[] = {{O200K(THREE, ENGLISH "?"), false}, {NULL, false}};
static const struct mdl_cut qwen2[] = {{CL100K("\\p{N}"), false}, {NULL, false}};
static const struct mdl_cut qwen35[] = {{ENGLISH "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]++|\\p{N}| ?[^" WS
                                                 "\\p{L}\\p{M}\\p{N}]++" TO_THE_NL "|" NL_RUN "|" WS_TAIL,
                                         false},
                                        {NULL, false}};
static const struct mdl_cut seed_coder[] = {{ENGLISH "|" WORD "|\\p{N}|" SIGNS "|" NL_RUN "|" WS_TAIL, false},
                                            {NULL, false}};
static const struct mdl_cut spark[] = {
    {THREE, false},
    {V3_CJK, false},
    {SIGN_WORD "|" MARK_WORD "| ?[\\p{P}\\p{S}]++|[\\r\\n]|" WS_TAIL, false},
    {"\\p{N}", false},
    {NULL, false}};
static const struct mdl_cut tekken[] = {{O200K("\\p{N}", ""), false}, {NULL, false}};
static const struct mdl_cut youtu[] = {
    {YOUTU_CJK, false}, {O200K("\\p{N}", ENGLISH "?"), false}, {NULL, false}};

/* The names that llama.cpp gives byte-level tokenizers of models that generate text. */
static const struct mdl_pre known[] = {
    {"a.x-4.0", gpt2, false, false},
    {"afmoe", afmoe, false, false},
    {"bailingmoe", qwen2, false, false},
    {"bailingmoe2", qwen2, false, false},
    {"chatglm-bpe", cl100k, false, false},
    {"codeshell", digits_gpt2, false, false},
    {"cohere2moe", cohere2, false, false},
    {"command-r", digits_gpt2, false, false},
    {"dbrx", cl100k, false, false},
    {"deepseek-coder", deepseek_coder, false, false},
    {"deepseek-llm", deepseek_llm, false, false},
    {"deepseek-r1-qwen", qwen2, false, false},
    {"deepseek-v3", deepseek_v3, false, false},
    {"default", default_, false, false},
    {"exaone", digits_gpt2, false, false},
    {"exaone-moe", exaone_moe, false, false},
    {"exaone4", gpt2, false, false},
    {"falcon", falcon, false, false},
    {"falcon-h1", cl100k, true, true},
    {"falcon3", cl100k, true, true},
    {"gigachat", gpt2, false, false},
    {"glm4", cl100k, false, false},
    {"gpt-2", gpt2, false, false},
    {"gpt-4o", o200k, false, false},
    {"granite-docling", gpt2, false, false},
    {"grok-2", qwen2, false, false},
    {"hunyuan", qwen2, false, false},
    {"hunyuan-dense", deepseek_v3, false, false},
    {"hy_v4", deepseek_v3, false, false},
    {"jais", gpt2, false, false},
    {"joyai-llm", deepseek_v3, false, false},
    {"kanana2", o200k, false, false},
    {"kimi-k2", kimi, false, false},
    {"kormo", qwen2, false, false},
    {"laguna", laguna, false, false},
    {"lfm2", cl100k, true, true},
    {"llada-moe", qwen2, false, false},
    {"llama-bpe", cl100k, true, true},
    {"llama-v3", cl100k, true, true},
    {"llama3", cl100k, true, true},
    {"llama4", o200k, false, false},
    {"megrez", qwen2, false, false},
    {"mellum", gpt2, false, false},
    {"mellum2", digits_gpt2, false, false},
    {"midm-2.0", cl100k, true, true},
    {"minerva-7b", digits_gpt2, false, false},
    {"minicpm5", minicpm5, true, false},
    {"minimax-m2", o200k, false, false},
    {"mpt", gpt2, false, false},
    {"olmo", gpt2, false, false},
    {"phi-2", gpt2, false, false},
    {"pixtral", cl100k, true, true},
    {"qwen2", qwen2, false, false},
    {"qwen35", qwen35, false, false},
    {"refact", digits_gpt2, false, false},
    {"seed-coder", seed_coder, false, false},
    {"smaug-bpe", cl100k, false, false},
    {"smollm", digits_gpt2, false, false},
    {"solar-open", qwen2, false, false},
    {"spark2_5", spark, false, false},
    {"stablelm2", qwen2, false, false},
    {"starcoder", digits_gpt2, false, false},
    {"talkie", o200k, false, false},
    {"tekken", tekken, true, true},
    {"tiny_aya", cohere2, false, false},
    {"trillion", gpt2, false, false},
    {"youtu", youtu, true, false},
};

/* What the converter calls a regex of tokenizer.json; NULL: ByteLevel's own. */
static const struct {
    const char *regex, *name;
    bool ignore_merges;
} written[] = {
    {CL100K_REGEX, "dbrx", false},
    {CL100K_REGEX, "llama-bpe", true},
    {NULL, "gpt-2", false},
    {GPT2_REGEX, "gpt-2", false},
};

const struct mdl_pre *mdl_pre_find(const char *name)
{
    for (size_t i = 0; i < COR_COUNT(known); i++)
        if (!strcmp(known[i].name, name))
            return &known[i];
    return NULL;
}

const struct mdl_pre *mdl_pre_by_regex(const char *regex, bool ignore_merges)
{
    for (size_t i = 0; i < COR_COUNT(written); i++) {
        const char *r = written[i].regex;

        if (written[i].ignore_merges == ignore_merges && (regex && r ? !strcmp(regex, r) : regex == r))
            return mdl_pre_find(written[i].name);
    }
    return NULL;
}

const char *mdl_pre_names(char *dst, size_t room)
{
    size_t n = 0;

    dst[0] = 0;
    for (size_t i = 0; i < COR_COUNT(known) && n < room; i++)
        n += (size_t)snprintf(dst + n, room - n, i ? ", %s" : "%s", known[i].name);
    return dst;
}
