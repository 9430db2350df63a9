/* two_prompts.c - two prompts answered at once with libsluice, their tokens as they come.
 *     cc two_prompts.c -o two_prompts $(pkg-config --cflags --libs sluice)
 *     ./two_prompts MODEL.gguf "first prompt" "second prompt" */
#include <sluice.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_PROMPTS = 2, N_TOKENS = 32 };

typedef struct stream {
    const sl_vocab *vocab;
    char name;                  /* each line says whose tokens it shows */
    sl_seq seq;
    sl_detok detok;             /* tokens can end inside a character: it holds the rest back */
    char *text;                 /* [sl_vocab_max_text] what one token adds */
} stream;

/* The library never prints and never exits: it returns a status, and the context has the words. */
static void need(sl_ctx *ctx, sl_status st)
{
    if (st == SL_OK) return;
    fprintf(stderr, "%s\n", sl_error(ctx));
    exit(1);
}

/* Called for each token of a sequence, and for its end. */
static void on_event(void *user, sl_engine *e, const sl_engine_event *ev)
{
    stream *s = user;
    (void)e;        /* sl_engine_stop(e, ev->seq) would end the text here */
    if (ev->kind == SL_EV_TOKEN) {
        size_t n = sl_detok_push(&s->detok, s->vocab, ev->token, false, s->text);
        printf("%c: %.*s\n", s->name, (int)n, s->text);
    }
    if (ev->kind == SL_EV_DONE && ev->error) fprintf(stderr, "%c: %s\n", s->name, ev->error);
}

static void submit(sl_ctx *ctx, sl_engine *e, stream *s, const char *prompt, size_t n)
{
    sl_request r = { .n_predict = N_TOKENS, .sampler = sl_sampler_defaults(),
                     .on_event = on_event, .user = s };
    int32_t *ids;
    need(ctx, sl_vocab_encode(ctx, s->vocab, prompt, n, true, true, &ids, &r.n_tokens));
    r.tokens = ids;
    r.sampler.seed = 1;
    need(ctx, sl_engine_submit(e, &r, &s->seq));
    free(ids);      /* submit has copied them */
}

int main(int argc, char **argv)
{
    if (argc != 2 + N_PROMPTS) {
        fprintf(stderr, "usage: %s MODEL.gguf PROMPT PROMPT\n", argv[0]);
        return 2;
    }
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_model *model = NULL;
    sl_engine *engine = NULL;
    sl_plan plan;
    if (!ctx) return 1;

    /* A model's header; a plan of where its weights lie; an engine that reads them and runs it. */
    need(ctx, sl_model_open(ctx, argv[1], &model));
    sl_plan_params params = sl_plan_defaults();
    params.n_seq = N_PROMPTS;
    params.n_ctx = 512;         /* 0 would be all that the model was made for */
    /* params.ram_bytes = 4ull << 30: a budget; experts that do not fit are read when needed */
    need(ctx, sl_plan_make(ctx, sl_model_shape(model), &params, &plan));
    need(ctx, sl_engine_open(ctx, model, &plan, &engine));

    stream streams[N_PROMPTS];
    for (int i = 0; i < N_PROMPTS; i++) {
        const sl_vocab *v = sl_model_vocab(model);
        streams[i] = (stream){ .vocab = v, .name = (char)('A' + i) };
        if (!v || !(streams[i].text = malloc(sl_vocab_max_text(v)))) return 1;
        sl_detok_init(&streams[i].detok);
        submit(ctx, engine, &streams[i], argv[2 + i], strlen(argv[2 + i]));
    }
    while (sl_engine_busy(engine)) need(ctx, sl_engine_step(engine, NULL, NULL));

    for (int i = 0; i < N_PROMPTS; i++) {
        sl_request_stats s;
        sl_engine_request_stats(engine, streams[i].seq, &s);
        printf("%c: %u tokens read, the first written after %.3f s, %u in %.3f s\n",
               streams[i].name, s.prompt_tokens, s.ttft_s, s.drawn_tokens, s.total_s);
        free(streams[i].text);
    }
    sl_engine_close(&engine);
    sl_model_close(&model);
    sl_ctx_destroy(&ctx);
    return 0;
}
