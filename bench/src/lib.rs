//! What the programs of this folder share.

/// The middle and the 99th percentile of these nanoseconds, which are sorted for it, as JSON; `null` where there are none.
pub fn quantiles(nanoseconds: &mut [u64]) -> serde_json::Value {
    nanoseconds.sort_unstable();
    let at = |share: f64| nanoseconds.get((nanoseconds.len() as f64 * share) as usize);
    serde_json::json!({"p50_ns": at(0.5), "p99_ns": at(0.99)})
}
