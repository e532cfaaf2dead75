//! `spec.domain.firmware.kernelBoot`.

use ferrovirt_api::v1::{KernelBoot as WireKernelBoot, KernelBootContainer};

use super::{Cx, text, volumes};
use crate::cause::FieldPath;
use crate::machine::KernelBoot;

/// The kernel's own limit on most architectures.
const MAX_ARGS: usize = 4096;

impl Cx<'_> {
    /// `None` where nothing is asked for, or a cause was found.
    pub(super) fn kernel_boot(&mut self, boot: &WireKernelBoot, path: &FieldPath) -> Option<KernelBoot> {
        let path = path.child("kernelBoot");
        let WireKernelBoot { container, kernel_args } = boot;
        let set = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        let args = set(kernel_args);
        if let Some(args) = &args {
            let field = path.child("kernelArgs");
            if args.len() > MAX_ARGS || !text::is_printable(args) {
                self.causes.invalid(
                    &field,
                    format!("is no command line: at most {MAX_ARGS} printable characters"),
                );
            }
            if container.as_ref().is_none_or(|c| set(&c.kernel_path).is_none()) {
                self.causes
                    .invalid(&field, "arguments need a kernel: container.kernelPath is not set");
            }
        }
        let KernelBootContainer {
            image,
            image_pull_policy,
            image_pull_secret,
            initrd_path,
            kernel_path,
        } = container.as_ref()?;
        let path = path.child("container");
        self.image(image, image_pull_policy.as_deref(), image_pull_secret.as_deref(), &path);
        let (kernel, initrd) = (set(kernel_path), set(initrd_path));
        if kernel.is_none() && initrd.is_none() {
            self.causes
                .required(&path, "the container needs kernelPath, initrdPath or both");
        }
        for (name, file) in [("kernelPath", &kernel), ("initrdPath", &initrd)] {
            if let Some(file) = file.as_ref().filter(|file| !volumes::is_file_path(file)) {
                self.causes.invalid(
                    &path.child(name),
                    format!("\"{file}\" must be the absolute path of a file, without . and .."),
                );
            }
        }
        Some(KernelBoot {
            image: image.clone(),
            kernel,
            initrd,
            args,
        })
    }
}
