#![no_main]
//! Quantities.

use coxswain_meta::quantity::Quantity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    let shown = quantity.to_string();
    let again: Quantity = shown.parse().unwrap_or_else(|error| panic!("{text:?} is shown as {shown:?}: {error}"));
    assert_eq!(quantity, again, "{text:?} is shown as {shown:?}");
    let _ = (quantity.value(), quantity.milli_value(), quantity.as_f64());
});
