/* The command line, tokenised once; what an option means is the planner's to say. */
#include "shifter.h"

static const struct option table[] = {
    {"image", required_argument, NULL, 'i'},
    {"volume", required_argument, NULL, 'V'},
    {"env", required_argument, NULL, 'e'},
    {"env-file", required_argument, NULL, 'F'},
    {"clearenv", no_argument, NULL, 'E'},
    {"unset-env", required_argument, NULL, 'U'},
    {"keep-env", required_argument, NULL, 'K'},
    {"entrypoint", optional_argument, NULL, 'T'},
    {"entry", optional_argument, NULL, 'T'},
    {"workdir", optional_argument, NULL, 'w'},
    {"module", required_argument, NULL, 'm'},
    {"gpu", optional_argument, NULL, 'G'},
    {"userns", no_argument, NULL, 'u'},
    {"plan", no_argument, NULL, 'P'},
    {"dry-run", no_argument, NULL, 'P'},
    {"json", no_argument, NULL, 'J'},
    {"check", no_argument, NULL, 'C'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'H'},
    {NULL, 0, NULL, 0},
};

int options_parse(int count, char **words, struct options *options)
{
    static char line[] = "shifter";
    int letter;
    words[0] = line;
    opterr = 0;
    while ((letter = getopt_long(count, words, "+:i:V:e:Evhnw::m:", table, NULL)) != -1) {
        if (letter == ':')
            fail("option %s needs a value: see shifter --help", words[optind - 1]);
        if (letter == '?')
            fail("option %s is not known, or takes no value: see shifter --help", words[optind - 1]);
        options->given[letter] = true;
        const char *name = NULL;
        for (const struct option *o = table; o->name && !name; o++)
            if (o->val == letter)
                name = o->name;
        if (!name)
            continue; /* -n is accepted and has no effect */
        const char *const fields[] = {"option", name, optarg ? "=" : "", optarg ? optarg : "", NULL};
        record_add(&options->request, fields);
    }
    caller.verbose = options->given['v'];
    return optind;
}
