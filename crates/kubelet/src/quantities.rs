//! Quantities of the typed API as numbers.

use std::collections::BTreeMap;

use coxswain_meta::Quantity as Exact;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// The exact quantity; the API server has validated it, so a malformed one counts as zero.
pub fn exact(quantity: &Quantity) -> Exact {
    quantity.0.parse().unwrap_or(Exact::ZERO)
}

/// A quantity in units (bytes, pods), rounded up.
pub fn units(quantity: &Quantity) -> i64 {
    exact(quantity).value()
}

/// A quantity in thousandths (CPU), rounded up.
pub fn milli(quantity: &Quantity) -> i64 {
    exact(quantity).milli_value()
}

/// The limit of one resource, if there is one.
pub fn limit<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a Quantity> {
    resources?.limits.as_ref()?.get(name)
}

/// The request of one resource; a limit stands in for it, as the API's defaults have it.
pub fn request<'a>(resources: Option<&'a ResourceRequirements>, name: &str) -> Option<&'a Quantity> {
    resources?.requests.as_ref().and_then(|requests| requests.get(name)).or_else(|| limit(resources, name))
}
