/* Errors: one line that says what happened, to what, and what to do. */
#include "shifter.h"

static void line(const char *format, va_list values)
{
    char text[4096] = "shifter: ";
    size_t used = strlen(text);
    vsnprintf(text + used, sizeof text - used - 1, format, values);
    for (char *c = text; *c; c++) /* what a user or an image named cannot write to the terminal beyond its line */
        if ((unsigned char)*c < ' ' || *c == 127)
            *c = '?';
    strcat(text, "\n");
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        return; /* nobody to tell */
}

void fail(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    line(format, values);
    va_end(values);
    cache_distrust();
    _exit(1);
}

void fail_errno(const char *what, const char *which)
{
    fail("%s: %s: %s", what, which, strerror(errno));
}

void say(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    line(format, values);
    va_end(values);
}

void *grow(void *old, size_t size)
{
    void *memory = realloc(old, size ? size : 1);
    if (!memory)
        fail("out of memory: %zu bytes: raise the address-space limit (ulimit -v)", size);
    return memory;
}
