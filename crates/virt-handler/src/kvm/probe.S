# The payload of the KVM probe: a multiboot (v1) image that QEMU's -kernel loads through SeaBIOS.
# It does what the first instructions of an ordinary kernel do: page tables, long mode, CPUID, a
# descriptor table, an exception taken and returned from, the time stamp counter; then it ends QEMU
# through isa-debug-exit (port 0xf4) with the value 0x2a, which makes QEMU's exit status 0x55.
# Assemble: as --64 probe.S -o probe.o && ld -m elf_x86_64 -Ttext 0x100000 --oformat binary probe.o -o probe.bin
.set FLAGS, 0x00010000                  # addresses are in this header
.code32
.globl _start
_start:
header:
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
    .long header, _start, end, tables + 0x4000, entry
entry:
    cld
    movl $stack, %esp
    # Identity-map the first GiB with 2 MiB pages: PML4, PDPT, PD below.
    movl $tables, %edi
    xorl %eax, %eax
    movl $0x1000, %ecx
    rep stosl
    movl $tables + 0x1003, tables
    movl $tables + 0x2003, tables + 0x1000
    movl $tables + 0x2000, %edi
    movl $0x83, %eax
    movl $512, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    # The gate of vector 3 (int3), 64-bit interrupt gate.
    movl $handler, %eax
    movl $tables + 0x3030, %edi
    movw %ax, (%edi)
    movw $8, 2(%edi)
    movw $0x8e00, 4(%edi)
    shrl $16, %eax
    movw %ax, 6(%edi)
    movl %cr4, %eax
    orl $0x20, %eax                     # PAE
    movl %eax, %cr4
    movl $tables, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax               # PG, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode
.code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack, %esp
    lidt idt_pointer
    xorl %ebx, %ebx
    int3
    cmpl $0x2a, %r15d
    jne fail
    movl $1000, %r12d                   # CPUID always exits to the hypervisor
2:  xorl %eax, %eax
    cpuid
    rdtsc
    decl %r12d
    jnz 2b
    movl %r15d, %eax
    outb %al, $0xf4
    jmp 3f                              # QEMU ends soon, not at once
fail:
    movb $1, %al
    outb %al, $0xf4
3:  hlt
    jmp 3b
handler:
    movl $0x2a, %r15d
    iretq
.balign 8
gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt
idt_pointer:
    .word 0xfff
    .quad tables + 0x3000
.balign 16
end:
# Not in the file: the loader clears it.
.set stack, 0x108000
.set tables, 0x110000
