//! VirtualMachineInstancePresets: defaults that a namespace gives to the VMIs that a selector matches.

use std::collections::BTreeMap;

use ferrovirt_api::v1::{DomainSpec, VirtualMachineInstance, VirtualMachineInstancePreset};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cause::{Cause, CauseReason};

/// Annotation of a VMI that wants no presets, when it is `true`.
pub const EXCLUDE_ANNOTATION: &str = "virtualmachineinstancepresets.admission.kubevirt.io/exclude";

/// What applying presets did, besides changing the VMI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Names of the presets that the VMI now carries as annotations.
    pub presets: Vec<String>,
    /// For the admission answer.
    pub warnings: Vec<String>,
}

/// Fills sections that `vmi` leaves empty from the presets of its namespace that select it.
///
/// A VMI's own section always wins. Doing it again changes nothing.
///
/// # Errors
/// Two selected presets fill the same section differently; the VMI is unchanged then.
pub fn apply_presets(
    vmi: &mut VirtualMachineInstance,
    presets: &[VirtualMachineInstancePreset],
) -> Result<Applied, Cause> {
    let annotations = vmi.metadata.annotations.as_ref();
    if annotations
        .and_then(|a| a.get(EXCLUDE_ANNOTATION))
        .is_some_and(|v| v == "true")
    {
        return Ok(Applied::default());
    }
    let labels = vmi.metadata.labels.clone().unwrap_or_default();
    let mut selected: Vec<&VirtualMachineInstancePreset> = presets
        .iter()
        .filter(|p| p.metadata.namespace == vmi.metadata.namespace)
        .filter(|p| selects(&p.spec.selector, &labels))
        .collect();
    selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for (i, a) in selected.iter().enumerate() {
        for b in &selected[i + 1..] {
            if let Some(section) = contradiction(a, b) {
                return Err(Cause {
                    reason: CauseReason::FieldValueInvalid,
                    field: "spec.domain".to_owned(),
                    message: format!(
                        "presets \"{}\" and \"{}\" contradict each other in {section}",
                        name(a),
                        name(b)
                    ),
                });
            }
        }
    }
    let mut applied = Applied::default();
    for preset in selected {
        let from = preset.spec.domain.as_ref();
        if !from.is_some_and(|from| merge(&mut vmi.spec.domain, from)) {
            continue;
        }
        let key = format!("virtualmachinepreset.kubevirt.io/{}", name(preset));
        let annotations = vmi.metadata.annotations.get_or_insert_default();
        annotations.insert(key, "kubevirt.io/v1".to_owned());
        applied.warnings.push(format!(
            "preset \"{}\" was applied; VirtualMachineInstancePresets are deprecated, use instance types",
            name(preset)
        ));
        applied.presets.push(name(preset).to_owned());
    }
    Ok(applied)
}

fn name(preset: &VirtualMachineInstancePreset) -> &str {
    preset.metadata.name.as_deref().unwrap_or_default()
}

/// Whether `selector` matches; an empty one matches everything.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let LabelSelector {
        match_expressions,
        match_labels,
    } = selector;
    let equal = match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = value.is_some_and(|v| e.values.iter().flatten().any(|other| other == v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The section that two presets fill differently.
fn contradiction(a: &VirtualMachineInstancePreset, b: &VirtualMachineInstancePreset) -> Option<&'static str> {
    fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        a.is_some() && b.is_some() && a != b
    }
    let (a, b) = (a.spec.domain.as_ref()?, b.spec.domain.as_ref()?);
    let timer = |d: &DomainSpec| d.clock.as_ref().and_then(|c| c.timer.clone());
    let requests = |d: &DomainSpec| d.resources.as_ref().map(|r| r.requests.clone());
    let both = |key: &String| {
        requests(a)
            .zip(requests(b))
            .is_some_and(|(a, b)| a.get(key) != b.get(key) && b.contains_key(key))
    };
    let offset = |d: &DomainSpec| {
        let clock = d.clock.as_ref()?;
        (clock.utc.is_some() || clock.timezone.is_some()).then(|| (clock.utc.clone(), clock.timezone.clone()))
    };
    [
        ("resources.requests", requests(a).is_some_and(|r| r.keys().any(both))),
        ("cpu", differ(&a.cpu, &b.cpu)),
        ("firmware", differ(&a.firmware, &b.firmware)),
        ("clock", differ(&offset(a), &offset(b))),
        ("clock.timer", differ(&timer(a), &timer(b))),
        ("features", differ(&a.features, &b.features)),
        ("devices.watchdog", differ(&a.devices.watchdog, &b.devices.watchdog)),
        ("ioThreadsPolicy", differ(&a.io_threads_policy, &b.io_threads_policy)),
    ]
    .into_iter()
    .find_map(|(section, differs)| differs.then_some(section))
}

/// Whether a section of `into` is now as `from` says.
fn merge(into: &mut DomainSpec, from: &DomainSpec) -> bool {
    fn fill<T: Clone + PartialEq>(into: &mut Option<T>, from: &Option<T>) -> bool {
        if into.is_none() {
            into.clone_from(from);
        }
        from.is_some() && into == from
    }
    let mut applied = false;
    let requests = from.resources.as_ref().map(|resources| &resources.requests);
    if let Some(from) = requests.filter(|requests| !requests.is_empty()) {
        let requests = &mut into.resources.get_or_insert_default().requests;
        if requests.is_empty() {
            requests.clone_from(from);
        }
        applied |= requests == from;
    }
    applied |= fill(&mut into.cpu, &from.cpu);
    applied |= fill(&mut into.firmware, &from.firmware);
    if let Some(clock) = &from.clock {
        let own = into.clock.get_or_insert_default();
        if own.utc.is_none() && own.timezone.is_none() {
            own.utc.clone_from(&clock.utc);
            own.timezone.clone_from(&clock.timezone);
        }
        let says = clock.utc.is_some() || clock.timezone.is_some();
        applied |= says && (&own.utc, &own.timezone) == (&clock.utc, &clock.timezone);
        applied |= fill(&mut own.timer, &clock.timer);
    }
    applied |= fill(&mut into.features, &from.features);
    applied |= fill(&mut into.devices.watchdog, &from.devices.watchdog);
    applied |= fill(&mut into.io_threads_policy, &from.io_threads_policy);
    applied
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn vmi(domain: Value, annotations: Value) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "a", "namespace": "n", "labels": {"os": "linux"}, "annotations": annotations},
            "spec": {"domain": domain}
        }))
        .unwrap()
    }

    fn preset(name: &str, selector: Value, domain: Value) -> VirtualMachineInstancePreset {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstancePreset",
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"selector": selector, "domain": domain}
        }))
        .unwrap()
    }

    fn linux() -> Value {
        json!({"matchLabels": {"os": "linux"}})
    }

    #[test]
    fn fills_only_what_is_empty() {
        let mut vmi = vmi(json!({"devices": {}, "cpu": {"cores": 2}}), json!({}));
        let p = preset(
            "p",
            linux(),
            json!({"devices": {}, "cpu": {"cores": 8}, "resources": {"requests": {"memory": "64M"}},
                   "features": {"smm": {}}, "clock": {"timezone": "Europe/Berlin"}}),
        );
        let applied = apply_presets(&mut vmi, std::slice::from_ref(&p)).unwrap();
        assert_eq!(applied.presets, ["p"]);
        assert_eq!(applied.warnings.len(), 1);
        assert_eq!(vmi.spec.domain.cpu.as_ref().unwrap().cores, Some(2));
        assert_eq!(vmi.spec.domain.resources.as_ref().unwrap().requests["memory"].0, "64M");
        assert!(vmi.spec.domain.features.is_some());
        let annotations = vmi.metadata.annotations.clone().unwrap();
        assert_eq!(annotations["virtualmachinepreset.kubevirt.io/p"], "kubevirt.io/v1");
        let once = vmi.clone();
        apply_presets(&mut vmi, &[p]).unwrap();
        assert_eq!(vmi, once);
    }

    /// A preset is told of where a section of the VMI is now as the preset says.
    #[test]
    fn presets_that_change_nothing_leave_no_trace() {
        for (own, from, applied) in [
            (json!({}), json!({"resources": {"requests": {"memory": "64M"}}}), true),
            (json!({}), json!({}), false),
            // Requests are one section.
            (
                json!({"resources": {"requests": {"cpu": "1"}}}),
                json!({"resources": {"requests": {"memory": "64M"}}}),
                false,
            ),
            (json!({"cpu": {"cores": 2}}), json!({"cpu": {"cores": 3}}), false),
            (json!({"cpu": {"cores": 2}}), json!({"cpu": {"cores": 2}}), true),
            (
                json!({"cpu": {"cores": 2}}),
                json!({"cpu": {"cores": 3}, "ioThreadsPolicy": "shared"}),
                true,
            ),
            (
                json!({"clock": {"utc": {}}}),
                json!({"clock": {"timezone": "Europe/Berlin"}}),
                false,
            ),
            (
                json!({"clock": {"utc": {}}}),
                json!({"clock": {"timezone": "Europe/Berlin", "timer": {"hpet": {}}}}),
                true,
            ),
        ] {
            let domain = |mut part: Value| {
                part["devices"] = json!({});
                part
            };
            let (mut vmi, preset) = (
                vmi(domain(own.clone()), json!({})),
                preset("p", linux(), domain(from.clone())),
            );
            let said = vmi.spec.domain.resources.clone();
            let found = apply_presets(&mut vmi, &[preset]).unwrap();
            assert_eq!(
                (found.presets.len(), found.warnings.len()),
                (usize::from(applied), usize::from(applied)),
                "{own} {from}"
            );
            let annotated = vmi
                .metadata
                .annotations
                .is_some_and(|a| a.contains_key("virtualmachinepreset.kubevirt.io/p"));
            assert_eq!(annotated, applied, "{own} {from}");
            if said.is_some() {
                assert_eq!(vmi.spec.domain.resources, said);
            }
        }
    }

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        for (selector, matches) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}),
                true,
            ),
            (json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), false),
            (
                json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}),
                true,
            ),
            (json!({"matchExpressions": [{"key": "b", "operator": "Near"}]}), false),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&parsed, &labels), matches, "{selector}");
        }
    }

    #[test]
    fn contradictions_are_refused_and_change_nothing() {
        let mut vmi = vmi(json!({"devices": {}}), json!({}));
        let before = vmi.clone();
        let a = preset("a", linux(), json!({"devices": {}, "cpu": {"cores": 1}}));
        let b = preset("b", linux(), json!({"devices": {}, "cpu": {"cores": 2}}));
        let cause = apply_presets(&mut vmi, &[a.clone(), b]).unwrap_err();
        assert!(
            cause.message.contains("\"a\" and \"b\"") && cause.message.contains("cpu"),
            "{cause}"
        );
        assert_eq!(vmi, before);
        apply_presets(
            &mut vmi,
            &[
                a.clone(),
                preset("c", linux(), json!({"devices": {}, "cpu": {"cores": 1}})),
            ],
        )
        .unwrap();
        let mut excluded = super::tests::vmi(json!({"devices": {}}), json!({EXCLUDE_ANNOTATION: "true"}));
        assert_eq!(apply_presets(&mut excluded, &[a]).unwrap(), Applied::default());
    }
}
