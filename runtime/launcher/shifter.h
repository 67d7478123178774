/* The launcher: the only privileged code that a user can start. It executes typed steps and knows no policy.
 * One file a facility; every failing system call is named with what it was about, and ends the start (fail). */
#pragma once
#include "kernel.h"
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>

/* config.c: what is compiled in, because a setuid program must not learn it from its caller */
extern const char config_path[], libexec_path[], python_path[], program_version[];
char *config_read(int directory, const char *path, int flags, size_t *size);
const char *config_loop_mount(void);

/* fail.c: one line on standard error, `shifter: what: which: what to do`, and exit status 1 */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail_errno(const char *what, const char *which); /* adds what errno says */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *grow(void *old, size_t size); /* realloc that never fails */

/* caller.c: who started us, and with what; taken once, before anything else */
#define START_MASK 022 /* of what a start makes */
struct caller {
    uid_t uid;
    gid_t gid;
    int group_count;
    gid_t *groups;
    mode_t mask;
    const char *directory; /* working directory, "" when it is gone */
    char **environment, **arguments; /* arguments: the command, without our options */
    bool verbose, privileged, rootless; /* privileged: started so; rootless: no privilege, a user namespace instead */
};
extern struct caller caller;
void caller_take(char **environment);
void caller_unstoppable(bool on); /* for the few calls during which others would wait for us */
void caller_signals(bool ours);
void as_user(void); /* file-system rights of the caller, as_root: of root; open and look-up only */
void as_root(void);
void become_user(void); /* for good: no capability, empty bounding set, no_new_privs */
_Noreturn void run_as_root(char *const command[]); /* in a child: exec as root with a clean environment */

/* wire.c: records (runtime/plan.py describes them) */
#define RECORD_LIMIT (1u << 20)
#define FIELD_LIMIT 65536
struct record {
    char *data;
    size_t size, room;
    char **field;
    int count;
};
void record_add(struct record *buffer, const char *const *fields);
size_t record_in_place(struct record *record, char *data, size_t size);
void send_all(int socket, const void *data, size_t size);
bool record_receive(struct record *record, int socket); /* false at the end */

/* options.c */
struct options {
    bool given[128];       /* by the letter that the table gives an option */
    struct record request; /* framed records: option, name, "=" or "", value */
};
int options_parse(int count, char **words, struct options *options); /* index of the command's first word */

/* cache.c: plans that were computed before, valid while each file that they were computed from is unchanged */
extern char cache_name[]; /* what the planner calls the plan of this request when it keeps it; "" when it must not */
bool cache_open(const struct record *request);
bool cache_next(struct record *step);
void cache_distrust(void); /* a plan that failed is not used again */

/* planner.c: the conversation with the planner */
void planner_request(struct record *request); /* completes the request: who, and the variables that matter */
void planner_start(const struct record *request);
void planner_attach(int socket);               /* a planner that started us: setupRoot */
void planner_in_background(const char *module, const char *function);
bool planner_next(struct record *step); /* false: it ended, well */
void planner_answer(char **f);
void planner_end(void);
_Noreturn void planner_help(const char *module, const char *function);

/* steps.c: the table of verbs */
void step_run(struct record *step);

/* root.c: the new root, and paths below it */
extern int root_fd, image_fd, mount_fd; /* the new root, the image, and where the root is attached (udiMount) */
extern bool root_on_host; /* no namespace of our own: what we unmount must not go on the host too */
void root_begin(char **f); /* makes the namespace, and the image the root */
void root_join(char **f);
int root_open(int base, const char *path, int flags);      /* below base; symbolic links refused; -1 and errno */
int host_open(const char *path, int flags);                /* a path of root's; symbolic links refused */
int host_directory(const char *path);                      /* the same; its parents are the site's, its name is no link */
int user_open(const char *path, int flags);                /* with the caller's rights; magic links refused */
int root_parent(const char *path, const char **name);      /* the directory of path, in a file system that we made */
void root_own(int tree);                                   /* notes a file system that we made */
void root_attach(int tree, const char *target);            /* takes tree; "/" makes it the new root */
void root_pivot(char **f);

/* image.c, hold.c: the image as a detached mount, one superblock for all its instances on the node */
void image_open(char **f);
int image_mount_file(int file, const char *path, const char *format, bool read_only, int memory);
int hold_open(int file, const struct stat *status, char **f);

/* mounts.c, files.c, disk.c, hooks.c: one function a step; fields as in plan.py */
int mount_new(const char *kind, char *options[][2], unsigned attributes, const char *target);
void mount_tmpfs(char **f);
void mount_bind(char **f);
void mount_bind_of_user(char **f);
void mount_overlay(char **f);
void mount_proc(char **f);
void mount_change(char **f);
void mount_local(char **f);
void file_mkdir(char **f);
void file_write(char **f);
void file_copy(char **f);
void file_symlink(char **f);
void disk_make(char **f);
void hook_root(char **f);
void hook_wait(pid_t child, const char *kind, const char *script); /* ends the start unless the script ended well */

#include "user/user.h"
