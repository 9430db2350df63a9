/* tests/t_json.c - JSON fields: what is read, and what is said of every kind of wrong one. */
#include "runtime/base/sl_json.h"
#include "tests/t.h"

static sl_ctx *ctx;

static const char text[] = "{\"a\": {\"b\": [1, {\"c\": 2.5}, -3]}, \"s\": \"hello\", "
                           "\"big\": 5000000000, \"yes\": true, \"none\": null, \"x\": \"y\"}";

#define FAILS(call, ...) \
    do { \
        static const char *const words[] = { __VA_ARGS__ }; \
        T_CHECK((call) == SL_E_FORMAT, "%s: no failure", #call); \
        for (size_t w_ = 0; w_ < SL_LEN(words); w_++) \
            T_CHECK(strstr(sl_error(ctx), words[w_]), "%s: \"%s\" lacks \"%s\"", #call, sl_error(ctx), words[w_]); \
    } while (0)

static void check_fields(const sl_json *root)
{
    sl_json a, list, item;
    size_t n = 0;
    double f = 7;
    uint32_t u = 7;
    uint64_t u64 = 7;
    char s[6] = "";
    T_CHECK(sl_json_str(root, "s", s, sizeof s) == SL_OK && !strcmp(s, "hello"), "%s",
            sl_error(ctx));
    T_CHECK(sl_json_u64(root, "big", 0, UINT64_MAX, &u64) == SL_OK && u64 == 5000000000u, "%s",
            sl_error(ctx));
    T_CHECK(sl_json_f64(root, "big", 0, 1e10, &f) == SL_OK && f == 5e9, "%s", sl_error(ctx));
    T_NEED(sl_json_get(root, "a", &a) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_json_array(&a, "b", 3, 3, &list, &n) == SL_OK && n == 3, "%s", sl_error(ctx));
    sl_json_at(&list, 1, &item);
    T_CHECK(sl_json_f64(&item, "c", 0, 10, &f) == SL_OK && f == 2.5, "%s", sl_error(ctx));
    T_CHECK(sl_json_has(root, "none") && !sl_json_has(root, "nothing") && !sl_json_has(&list, "c"),
            "has");

    f = 7, u = 7;
    FAILS(sl_json_f64(&item, "c", 3, 4, &f), "t.json", "a.b[1].c", "from 3 to 4", "found 2.5");
    FAILS(sl_json_u32(&item, "c", 0, 4, &u), "a.b[1].c", "whole number", "found 2.5");
    FAILS(sl_json_u32(root, "big", 0, UINT32_MAX, &u), "big", "4294967295", "found 5000000000");
    FAILS(sl_json_u32(root, "gone", 0, 1, &u), "gone", "found nothing");
    FAILS(sl_json_u32(&list, "c", 0, 1, &u), "a.b", "an object", "an array of 3");
    FAILS(sl_json_f64(root, "yes", 0, 1, &f), "yes", "number", "found true");
    FAILS(sl_json_f64(root, "none", 0, 1, &f), "none", "number", "found null");
    FAILS(sl_json_str(root, "a", s, sizeof s), "a:", "text", "found an object");
    FAILS(sl_json_str(root, "s", s, 5), "s:", "at most 4 bytes", "\"hello\"");
    FAILS(sl_json_array(&a, "b", 4, 5, &list, &n), "a.b", "4 to 5", "an array of 3");
    FAILS(sl_json_array(root, "s", 0, 5, &list, &n), "s:", "array", "\"hello\"");
    T_CHECK(f == 7 && u == 7, "a failed call wrote");
    sl_json_at(&list, 2, &item);
    FAILS(sl_json_expected(&item, "a dog"), "a.b[2]", "a dog", "found -3");
    FAILS(sl_json_expected(root, "peace"), "(root)", "peace");
}

static void check_long_paths(void)
{
    sl_json at = { .ctx = ctx, .file = "deep.json" }, next;
    json_t *top = json_object(), *v = top;
    for (int i = 0; i < 40; i++) {
        json_t *inner = json_object();
        json_object_set_new(v, "a_rather_long_name_of_a_field", inner);
        v = inner;
    }
    at.v = top;
    for (int i = 0; i < 40; i++) {
        T_NEED(sl_json_get(&at, "a_rather_long_name_of_a_field", &next) == SL_OK, "%s",
               sl_error(ctx));
        at = next;
    }
    FAILS(sl_json_get(&at, "end", &next), "end", "found nothing");
    json_decref(top);
}

int main(void)
{
    sl_json root;
    char path[] = "/tmp/t_json_XXXXXX";
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    T_NEED(ctx, "context");
    T_NEED(sl_json_parse(ctx, "t.json", text, sizeof text - 1, &root) == SL_OK, "%s",
           sl_error(ctx));
    check_fields(&root);
    check_long_paths();
    for (size_t n = 0; n < sizeof text - 1; n++) {      /* every truncation */
        sl_json half;
        T_CHECK(sl_json_parse(ctx, "t.json", text, n, &half) == SL_E_FORMAT,
                "%zu bytes were enough", n);
    }
    FAILS(sl_json_parse(ctx, "t.json", "{\"a\": 1, \"a\": 2}", 16, &root), "t.json", "line 1");
    FAILS(sl_json_parse(ctx, "t.json", "[\"a\\u0000b\"]", 12, &root), "t.json", "line 1");

    int fd = mkstemp(path);
    T_NEED(fd >= 0 && !close(fd), "mkstemp");
    T_CHECK(sl_json_save(ctx, json_pack("{s:f}", "v", 0.1), path) == SL_OK, "%s", sl_error(ctx));
    json_decref(root.v);
    double f;
    T_NEED(sl_json_load(ctx, path, &root) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_json_f64(&root, "v", 0, 1, &f) == SL_OK && f == 0.1, "%s", sl_error(ctx));
    json_decref(root.v);
    remove(path);
    T_CHECK(sl_json_load(ctx, path, &root) == SL_E_IO && strstr(sl_error(ctx), path), "%s",
            sl_error(ctx));
    T_CHECK(sl_json_save(ctx, json_object(), "/nonexistent/x.json") == SL_E_IO, "%s",
            sl_error(ctx));
    T_CHECK(sl_json_save(ctx, NULL, path) == SL_E_NOMEM && access(path, F_OK),
            "a file without a value");
    sl_ctx_destroy(&ctx);
    return t_end();
}
