/*
 * Multiboot entry of the emulated check: 64-bit mode with AVX-512 switched on, then kmain. Nothing else of an
 * operating system: no interrupts, memory identity-mapped by 2 MiB pages.
 */
.section .note.GNU-stack,"",@progbits
.section .entry,"ax"
.code32
.align 4
header:
        .long 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        .long header, load_begin, load_end, bss_end, start
.globl start
start:
        cli
        mov $stack_top, %esp
        movl $(directories + 3), level4
        mov $(tables + 3), %eax
        mov $directories, %edi
        mov $4, %ecx
1:      mov %eax, (%edi)
        add $4096, %eax
        add $8, %edi
        loop 1b
        mov $0x83, %eax                 /* present, writable, large */
        mov $tables, %edi
        mov $2048, %ecx
2:      mov %eax, (%edi)
        add $0x200000, %eax
        add $8, %edi
        loop 2b
        mov %cr4, %eax
        or $0x40620, %eax               /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
        mov %eax, %cr4
        mov $level4, %eax
        mov %eax, %cr3
        mov $0xc0000080, %ecx           /* EFER.LME */
        rdmsr
        or $0x100, %eax
        wrmsr
        mov %cr0, %eax
        and $~4, %eax                   /* EM */
        or $0x80000002, %eax            /* PG, MP */
        mov %eax, %cr0
        lgdt descriptor
        ljmp $8, $long_mode
.code64
long_mode:
        mov $16, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        xor %ecx, %ecx
        xor %edx, %edx
        mov $0xe7, %eax                 /* XCR0: x87, SSE, AVX, the three parts of AVX-512 */
        xsetbv
        mov $stack_top, %rsp
        call kmain
3:      hlt
        jmp 3b
.align 8
segments:
        .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
descriptor:
        .word 23
        .long segments
.bss
.align 4096
level4:      .skip 4096
directories: .skip 4096
tables:      .skip 4 * 4096
             .skip 1 << 18
.align 64
stack_top:
