//! `guestfs`: where the image is that `virtctl guestfs` starts beside a claim.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::status::{self, Refusal};

/// Its name at the end of its repository, which clients add themselves.
const NAME: &str = "libguestfs-tools";

/// The answer to GET.
///
/// # Errors
/// 501 in a home without the image.
pub(crate) fn answer(image: Option<&str>) -> Result<Response<Body>, Refusal> {
    let image = image.ok_or_else(|| {
        status::failure(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "there is no image of guestfs here, as on one machine no pods but those of virtual machines run: use guestfish \
             (package guestfish) on the files of the claim's volume",
        )
    })?;
    Ok(status::json(StatusCode::OK, &info(image)))
}

/// KubeVirt's `GuestfsInfo`: `gsImage` is all, the rest its parts for clients that put it together themselves.
fn info(image: &str) -> Value {
    let (repository, digest) = image.split_once('@').unwrap_or((image, ""));
    let name_at = repository.rfind('/').map_or(0, |at| at + 1);
    let tag_at = repository[name_at..].rfind(':').map(|at| name_at + at);
    let (repository, tag) = tag_at.map_or((repository, ""), |at| (&repository[..at], &repository[at + 1..]));
    json!({
        "registry": repository[..name_at].trim_end_matches('/'),
        "tag": tag,
        "digest": digest,
        "imagePrefix": repository[name_at..].strip_suffix(NAME).unwrap_or_default(),
        "gsImage": image,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_image() {
        for (image, registry, tag, digest, prefix) in [
            ("r.example/f/libguestfs-tools:v1", "r.example/f", "v1", "", ""),
            (
                "r.example:5000/f/my-libguestfs-tools:v1",
                "r.example:5000/f",
                "v1",
                "",
                "my-",
            ),
            (
                "r.example:5000/libguestfs-tools@sha256:ab",
                "r.example:5000",
                "",
                "sha256:ab",
                "",
            ),
            ("libguestfs-tools", "", "", "", ""),
            ("r.example/tools:v1", "r.example", "v1", "", ""),
        ] {
            let expected = json!({
                "registry": registry, "tag": tag, "digest": digest, "imagePrefix": prefix, "gsImage": image,
            });
            assert_eq!(info(image), expected, "{image}");
        }
    }

    #[test]
    fn a_home_without_the_image_says_what_to_do() {
        let refusal = answer(None).unwrap_err();
        assert_eq!(refusal.code, Some(501));
        assert!(refusal.message.unwrap().contains("guestfish"));
        assert!(answer(Some("r/libguestfs-tools:v1")).is_ok());
    }
}
