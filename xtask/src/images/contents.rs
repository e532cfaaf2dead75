//! What is in the images: tables, nothing else.
//!
//! Layers that several images share are the same bytes at the same place in each of them, so a node stores and unpacks them
//! once. That matters beyond space: libvirt's capability cache holds only for the QEMU file it was made with, down to its
//! change time, and virt-handler prepares it for the launchers on its node.

/// Debian's release that the images are made of; `cargo xtask images` fetches its lists itself.
pub const SUITE: &str = "bookworm";

/// Sources of packages. QEMU and libvirt of the release are too old; its backports are not.
pub const SOURCES: &[&str] = &[
    "deb [signed-by=KEYRING] http://deb.debian.org/debian bookworm main",
    "deb [signed-by=KEYRING] http://deb.debian.org/debian bookworm-updates main",
    "deb [signed-by=KEYRING] http://deb.debian.org/debian bookworm-backports main",
    "deb [signed-by=KEYRING] http://deb.debian.org/debian-security bookworm-security main",
];

/// Which packages come from the backports.
pub const PREFERENCES: &str = "\
Package: qemu-* libvirt* seabios
Pin: release n=bookworm-backports
Pin-Priority: 990
";

/// Files of one Debian package.
pub struct Files {
    pub package: &'static str,
    /// Patterns of paths without the first slash; `*` stands for anything within a name, `**` at the end for a whole tree,
    /// and a pattern that begins with `!` takes paths away again. Shared libraries are not named: whatever a kept
    /// executable or library needs is kept, and nothing else. One that is only opened at run time must be named.
    pub keep: &'static [&'static str],
}

/// A layer of files from Debian packages.
pub struct DebianLayer {
    pub name: &'static str,
    /// Lower layers of all images that have it: what they hold is left out.
    pub upon: &'static [&'static str],
    pub files: &'static [Files],
    /// Other names: link and target.
    pub links: &'static [(&'static str, &'static str)],
}

/// Each after those that it is upon.
pub const DEBIAN_LAYERS: &[DebianLayer] = &[RUNTIME, VIRTUALIZATION, HANDLER, GUESTFS, SCRIPTS];

/// What any executable of ours needs. Its directories, accounts and certificates are made in `skeleton`.
const RUNTIME: DebianLayer = DebianLayer {
    name: "runtime",
    upon: &[],
    files: &[
        Files {
            package: "base-files",
            keep: &["usr/lib/os-release", "etc/os-release", "etc/debian_version"],
        },
        Files {
            package: "libc6",
            keep: &[
                "usr/lib64/ld-linux-x86-64.so.2",
                "usr/lib/x86_64-linux-gnu/libc.so.6",
                "usr/lib/x86_64-linux-gnu/libm.so.6",
            ],
        },
        Files {
            package: "libgcc-s1",
            keep: &["usr/lib/x86_64-linux-gnu/libgcc_s.so.1"],
        },
    ],
    links: &[],
};

/// QEMU, libvirt and firmware.
const VIRTUALIZATION: DebianLayer = DebianLayer {
    name: "virtualization",
    upon: &["runtime"],
    files: &[
        // The launcher starts libvirtd by a line of shell, and libvirt runs hooks by it.
        Files {
            package: "dash",
            keep: &["usr/bin/dash", "usr/bin/sh"],
        },
        Files {
            package: "genisoimage",
            keep: &["usr/bin/genisoimage"],
        },
        Files {
            package: "ipxe-qemu",
            keep: &[
                "usr/lib/ipxe/qemu/efi-e1000.rom",
                "usr/lib/ipxe/qemu/efi-e1000e.rom",
                "usr/lib/ipxe/qemu/efi-ne2k_pci.rom",
                "usr/lib/ipxe/qemu/efi-pcnet.rom",
                "usr/lib/ipxe/qemu/efi-rtl8139.rom",
                "usr/lib/ipxe/qemu/efi-virtio.rom",
            ],
        },
        Files {
            package: "libvirt-common",
            keep: &["usr/share/libvirt/cpu_map/index.xml", "usr/share/libvirt/cpu_map/x86_*"],
        },
        Files {
            package: "libvirt-daemon",
            keep: &["usr/sbin/libvirtd"],
        },
        Files {
            package: "libvirt-daemon-common",
            keep: &["usr/lib/libvirt/libvirt_iohelper"],
        },
        Files {
            package: "libvirt-daemon-driver-qemu",
            keep: &["usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"],
        },
        Files {
            package: "ovmf",
            keep: &[
                "usr/share/OVMF/OVMF_CODE_4M.fd",
                "usr/share/OVMF/OVMF_CODE_4M.ms.fd",
                "usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                "usr/share/OVMF/OVMF_VARS_4M.fd",
                "usr/share/OVMF/OVMF_VARS_4M.ms.fd",
                "usr/share/qemu/firmware/*.json",
            ],
        },
        Files {
            package: "qemu-system-common",
            keep: &[
                "usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-gpu-pci.so",
                "usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-gpu.so",
                "usr/lib/x86_64-linux-gnu/qemu/hw-display-virtio-vga.so",
                "usr/lib/x86_64-linux-gnu/qemu/hw-usb-redirect.so",
            ],
        },
        Files {
            package: "qemu-system-data",
            keep: &[
                "usr/share/qemu/keymaps/*",
                "usr/share/qemu/kvmvapic.bin",
                "usr/share/qemu/linuxboot*.bin",
                "usr/share/qemu/multiboot*.bin",
                "usr/share/qemu/pvh.bin",
            ],
        },
        Files {
            package: "qemu-system-x86",
            keep: &["usr/bin/qemu-system-x86_64"],
        },
        Files {
            package: "qemu-utils",
            keep: &["usr/bin/qemu-img"],
        },
        Files {
            package: "seabios",
            keep: &[
                "usr/share/seabios/bios-256k.bin",
                "usr/share/seabios/bios.bin",
                "usr/share/seabios/vgabios*.bin",
            ],
        },
        // An emulated TPM; libvirt makes its certificates with certtool.
        Files {
            package: "gnutls-bin",
            keep: &["usr/bin/certtool"],
        },
        Files {
            package: "swtpm",
            keep: &["usr/bin/swtpm"],
        },
        Files {
            package: "swtpm-tools",
            // libvirt wants all three executables before it believes in any TPM.
            keep: &[
                "usr/bin/swtpm_cert",
                "usr/bin/swtpm_ioctl",
                "usr/bin/swtpm_localca",
                "usr/bin/swtpm_setup",
            ],
        },
        // QEMU's clock for `clock.timezone`.
        Files {
            package: "tzdata",
            keep: &[
                "usr/share/zoneinfo/**",
                "!usr/share/zoneinfo/localtime",
                "!usr/share/zoneinfo/posix/**",
                "!usr/share/zoneinfo/right/**",
            ],
        },
    ],
    links: &[],
};

/// What virt-handler and the daemon beside it need beside the launcher's own files.
const HANDLER: DebianLayer = DebianLayer {
    name: "handler",
    upon: &["runtime", "virtualization"],
    files: &[
        Files {
            package: "nftables",
            keep: &["usr/sbin/nft"],
        },
        // Reserves LUNs for guests.
        Files {
            package: "qemu-system-common",
            keep: &["usr/bin/qemu-pr-helper"],
        },
    ],
    links: &[],
};

// What people and scripts work with at a shell.
const BASH: Files = Files {
    package: "bash",
    keep: &["usr/bin/bash"],
};
const COREUTILS: Files = Files {
    package: "coreutils",
    keep: &["usr/bin/*"],
};
const FINDUTILS: Files = Files {
    package: "findutils",
    keep: &["usr/bin/find", "usr/bin/xargs"],
};
const GREP: Files = Files {
    package: "grep",
    keep: &["usr/bin/grep"],
};
const SED: Files = Files {
    package: "sed",
    keep: &["usr/bin/sed"],
};

/// A shell with libguestfs' tools, for `virtctl guestfs`. Their appliance is a layer of its own.
const GUESTFS: DebianLayer = DebianLayer {
    name: "guestfs",
    upon: &["runtime", "virtualization"],
    files: &[
        BASH,
        COREUTILS,
        Files {
            package: "diffutils",
            keep: &["usr/bin/cmp", "usr/bin/diff"],
        },
        FINDUTILS,
        GREP,
        Files {
            package: "guestfish",
            keep: &["usr/bin/*"],
        },
        Files {
            package: "guestfs-tools",
            // Without those that fetch templates, or are written in Perl.
            keep: &[
                "usr/bin/virt-*",
                "!usr/bin/virt-builder*",
                "!usr/bin/virt-dib",
                "!usr/bin/virt-index-validate",
                "!usr/bin/virt-win-reg",
            ],
        },
        Files {
            package: "gzip",
            keep: &["usr/bin/gunzip", "usr/bin/gzip", "usr/bin/zcat"],
        },
        Files {
            package: "less",
            keep: &["usr/bin/less"],
        },
        Files {
            package: "libguestfs-tools",
            keep: &["usr/bin/libguestfs-test-tool"],
        },
        // The editor of `guestfish edit` and virt-edit.
        Files {
            package: "nano",
            keep: &["usr/bin/nano"],
        },
        Files {
            package: "ncurses-base",
            keep: &["usr/lib/terminfo/**"],
        },
        SED,
        Files {
            package: "tar",
            keep: &["usr/bin/tar"],
        },
    ],
    links: &[],
};

/// What scripts of hook sidecars are written in.
const SCRIPTS: DebianLayer = DebianLayer {
    name: "scripts",
    upon: &["runtime"],
    files: &[
        BASH,
        COREUTILS,
        FINDUTILS,
        Files {
            package: "gawk",
            keep: &["usr/bin/gawk"],
        },
        GREP,
        Files {
            package: "libpython3.11-minimal",
            keep: &["usr/lib/python3.11/**"],
        },
        Files {
            package: "libpython3.11-stdlib",
            keep: &["usr/lib/python3.11/**"],
        },
        Files {
            package: "python3-minimal",
            keep: &["usr/bin/python3"],
        },
        Files {
            package: "python3.11-minimal",
            keep: &["usr/bin/python3.11"],
        },
        SED,
    ],
    // As where KubeVirt's scripts run: dash's `echo` would turn `\n` in JSON into line breaks.
    links: &[("usr/bin/awk", "gawk"), ("usr/bin/sh", "bash")],
};

/// Packages of which only something generated is in the images.
pub const SOURCES_OF_GENERATED: &[&str] = &["ca-certificates"];

/// A layer of our own executables.
pub struct OwnLayer {
    pub name: &'static str,
    /// Crate and executable; it becomes `/usr/bin/NAME`.
    pub executable: &'static str,
    /// Other names for executables: link and target.
    pub links: &'static [(&'static str, &'static str)],
    /// Lower layers, where the libraries it needs must be; none for one that is linked statically, and built here.
    pub upon: &'static [&'static str],
}

/// They change with every build, so they are above all others, and small.
pub const OWN_LAYERS: &[OwnLayer] = &[
    OwnLayer {
        name: "ferrovirt",
        executable: "ferrovirt",
        // Manifests and images that build on KubeVirt's know it there.
        links: &[("sidecar-shim", "usr/bin/ferrovirt")],
        upon: &["runtime"],
    },
    OwnLayer {
        name: "virt-launcher",
        executable: "virt-launcher",
        links: &[
            ("usr/bin/virt-freezer", "ferrovirt"),
            ("usr/bin/virt-probe", "ferrovirt"),
            ("usr/bin/virt-tail", "ferrovirt"),
            ("usr/bin/virtiofs-server", "virt-launcher"),
        ],
        upon: &["runtime", "virtualization"],
    },
    // Runs in images of disks, which have nothing else.
    OwnLayer {
        name: "container-disk",
        executable: "container-disk",
        links: &[],
        upon: &[],
    },
];

/// An image.
pub struct Image {
    pub name: &'static str,
    pub title: &'static str,
    /// From the lowest to the highest, of [`DEBIAN_LAYERS`], [`OWN_LAYERS`], [`super::passt::LAYER`] and
    /// [`super::guestfs::LAYER`].
    pub layers: &'static [&'static str],
    pub user: &'static str,
    pub entrypoint: &'static [&'static str],
}

/// All images.
pub const IMAGES: &[Image] = &[
    Image {
        name: "ferrovirt",
        title: "Ferrovirt's control plane: virt-operator, virt-api, virt-controller",
        layers: &["runtime", "ferrovirt"],
        user: "1001:1001",
        entrypoint: &["/usr/bin/ferrovirt"],
    },
    Image {
        name: "virt-handler",
        title: "Ferrovirt's agent on each node",
        layers: &["runtime", "virtualization", "ferrovirt", "virt-launcher", "handler"],
        user: "0:0",
        entrypoint: &["/usr/bin/ferrovirt", "virt-handler"],
    },
    Image {
        name: "virt-launcher",
        title: "Ferrovirt's pod around one virtual machine: QEMU, libvirt, firmware",
        layers: &[
            "runtime",
            "virtualization",
            "passt",
            "ferrovirt",
            "virt-launcher",
            "container-disk",
        ],
        user: "107:107",
        entrypoint: &["/usr/bin/virt-launcher"],
    },
    Image {
        name: "libguestfs-tools",
        title: "Tools for disks of virtual machines that do not run: virtctl guestfs",
        layers: &["runtime", "virtualization", "guestfs", "guestfs-appliance"],
        user: "107:107",
        entrypoint: &["/entrypoint.sh"],
    },
    Image {
        name: "sidecar-shim",
        title: "Hook sidecars that are programs or scripts of a ConfigMap",
        layers: &["runtime", "scripts", "ferrovirt"],
        user: "107:107",
        entrypoint: &["/sidecar-shim"],
    },
];

/// Accounts in every image: libvirt starts no guest for a user without a name.
pub const PASSWD: &str = "\
root:x:0:0:root:/:/usr/sbin/nologin
qemu:x:107:107:qemu:/:/usr/sbin/nologin
nonroot:x:1001:1001:nonroot:/:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
";

/// Their groups; Kubernetes' device plugins hand out `/dev/kvm` by number.
pub const GROUP: &str = "\
root:x:0:
tty:x:5:
qemu:x:107:
nonroot:x:1001:
nogroup:x:65534:
";

/// Where names are looked up: no plug-ins beyond glibc's own.
pub const NSSWITCH: &str = "\
passwd: files
group: files
hosts: files dns
services: files
";

/// Directories of the lowest layer, with their modes.
pub const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("usr/sbin", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/tmp", 0o1777),
];

/// Links of the lowest layer: Debian's merged `/usr`.
pub const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
    ("var/run", "/run"),
];
