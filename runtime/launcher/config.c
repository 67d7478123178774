/* The paths that the launcher trusts, compiled in for each site; of udiRoot.conf it reads where plans are kept, no more. */
#include "shifter.h"

#define FILE_LIMIT (8 << 20)

const char config_path[] = CONFIG_PATH;
const char libexec_path[] = LIBEXEC_PATH;
const char python_path[] = PYTHON_PATH;
const char program_version[] = VERSION;

/* The content of a file that is root's and nobody else's to write, with a NUL behind it; NULL when it is not, or not there. With
 * O_NOFOLLOW it must also be the file's only name. */
char *config_read(int directory, const char *path, int flags, size_t *size)
{
    struct stat status;
    char *text = NULL;
    int file = openat(directory, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags);
    if (file < 0)
        return NULL;
    if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == 0 && !(status.st_mode & 022) &&
        (status.st_nlink == 1 || !(flags & O_NOFOLLOW)) && status.st_size > 0 && status.st_size < FILE_LIMIT) {
        *size = (size_t)status.st_size;
        text = grow(NULL, *size + 1);
        text[*size] = 0;
        if (read(file, text, *size) != (ssize_t)*size)
            text = NULL;
    }
    close(file);
    return text;
}

/* The value of loopMount, or "": the planner then says what is wrong with the file. */
const char *config_loop_mount(void)
{
    size_t size;
    char *rest = config_read(AT_FDCWD, config_path, 0, &size);
    for (char *line; (line = strsep(&rest, "\n"));) {
        if (strncmp(line, "loopMount", 9) != 0)
            continue;
        char *value = line + 9 + strspn(line + 9, " \t");
        if (*value != '=')
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, " \t\r\\")] = 0;
        return *value == '/' ? value : "";
    }
    return "";
}
