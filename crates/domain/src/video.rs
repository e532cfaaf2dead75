//! The video card.

use ferrovirt_core::machine::{Architecture, Boot, Machine};

use crate::xml::{Element, el};

const VRAM_KIB: u32 = 16 * 1024;

pub(crate) fn video(machine: &Machine) -> Option<Element> {
    if !machine.graphics {
        return None;
    }
    let default = match (machine.architecture, machine.boot) {
        (Architecture::Amd64, Boot::Bios { .. }) => "vga",
        (Architecture::Amd64, Boot::Efi { .. }) => "bochs",
        (Architecture::Arm64 | Architecture::S390x, _) => "virtio",
    };
    let model = machine.video.as_deref().unwrap_or(default);
    // The others size their memory themselves.
    let sized = matches!(model, "vga" | "bochs" | "cirrus");
    Some(
        el("video").child(
            el("model")
                .attr("type", model)
                .attr_if("vram", sized.then_some(VRAM_KIB))
                .attr("heads", 1),
        ),
    )
}
