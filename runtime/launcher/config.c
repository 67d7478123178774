/* The paths that the launcher trusts, compiled in for each site; of udiRoot.conf it reads where plans are kept, no more. */
#include "shifter.h"

const char config_path[] = CONFIG_PATH;
const char libexec_path[] = LIBEXEC_PATH;
const char python_path[] = PYTHON_PATH;
const char program_version[] = VERSION;

/* The value of loopMount, or "": the planner then says what is wrong with the file. */
const char *config_loop_mount(void)
{
    static char text[65536];
    struct stat status;
    int file = open(config_path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return "";
    ssize_t size = fstat(file, &status) == 0 && status.st_uid == 0 && !(status.st_mode & 022)
                       ? read(file, text, sizeof text - 1) : -1;
    close(file);
    if (size <= 0)
        return "";
    text[size] = 0;
    char *rest = text;
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
