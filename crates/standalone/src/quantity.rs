//! Kubernetes quantities as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn read(quantity: &Quantity) -> ferrovirt_api::Quantity {
    quantity.clone().into()
}

/// Whole units, such as bytes, rounded up. `None` if it is negative or no quantity.
pub(crate) fn bytes(quantity: &Quantity) -> Option<u64> {
    u64::try_from(read(quantity).bytes().ok()?).ok()
}

/// Thousandths, such as millicores, rounded up. `None` if it is negative or no quantity.
pub(crate) fn millis(quantity: &Quantity) -> Option<u64> {
    u64::try_from(read(quantity).millis().ok()?).ok()
}
