/* The program's first instructions, with musl on x86-64. Started setuid, musl asks poll(2) about descriptors 0 to 2 before main and,
 * where RLIMIT_NOFILE forbids even that, dies by a signal: this says what is wrong instead. No library works yet. */
#include <sys/syscall.h>

    .globl launcher_entry
launcher_entry:
    mov $SYS_prlimit64, %eax
    xor %edi, %edi              /* of this process */
    mov $7, %esi                /* RLIMIT_NOFILE */
    xor %edx, %edx
    lea -16(%rsp), %r10         /* its soft and its hard value */
    syscall
    cmpq $3, -16(%rsp)
    jae _start
    mov $SYS_write, %eax
    mov $2, %edi
    lea text(%rip), %rsi
    mov $length, %edx
    syscall
    mov $SYS_exit_group, %eax
    mov $1, %edi
    syscall
text:
    .ascii "shifter: cannot start: too few files may be open: raise the limit (ulimit -n)\n"
    .set length, . - text
    .section .note.GNU-stack, "", @progbits
