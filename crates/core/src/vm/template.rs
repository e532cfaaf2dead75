//! What of a VM's template has changed since its guest was started. Pure.

use ferrovirt_api::Quantity;
use ferrovirt_api::v1::{VirtualMachineInstanceSpec, VirtualMachineSpec};
use serde_json::{Value, json};

/// What is changed in a running VMI: where its pod may be, for when it moves.
const LIVE: [&str; 3] = ["nodeSelector", "affinity", "tolerations"];
/// Fields that are amounts …
const AMOUNTS: [&str; 4] = ["guest", "maxGuest", "addedOverhead", "capacity"];
/// … and maps of amounts.
const AMOUNT_MAPS: [&str; 2] = ["requests", "limits"];

/// Whether the guest is not what the VM asks for: something of the template's spec has changed that is not changed in a
/// running VMI. With `live` unset that is everything.
#[must_use]
pub fn needs_restart(started: &VirtualMachineSpec, now: &VirtualMachineSpec, live: bool) -> bool {
    let spec = |vm: &VirtualMachineSpec| comparable(&vm.template.spec, live);
    spec(started) != spec(now) || started.instancetype != now.instancetype || started.preference != now.preference
}

/// Whether the VMI shows all that the VM asks for, labels and annotations included.
#[must_use]
pub fn is_met(started: &VirtualMachineSpec, now: &VirtualMachineSpec, live: bool) -> bool {
    started.template.metadata == now.template.metadata && !needs_restart(started, now, live)
}

/// JSON patch operations that bring a running VMI to the template in what can be changed; none if it is there.
#[must_use]
pub fn live_changes(vmi: &VirtualMachineInstanceSpec, template: &VirtualMachineInstanceSpec) -> Vec<Value> {
    let (is, wanted) = (json!(vmi), json!(template));
    let mut operations = Vec::new();
    for field in LIVE {
        let path = format!("/spec/{field}");
        match (is.get(field), wanted.get(field)) {
            (is, wanted) if is == wanted => {}
            (None, wanted) => operations.push(json!({"op": "add", "path": path, "value": wanted})),
            (Some(is), wanted) => {
                operations.push(json!({"op": "test", "path": path, "value": is}));
                operations.push(match wanted {
                    Some(wanted) => json!({"op": "replace", "path": path, "value": wanted}),
                    None => json!({"op": "remove", "path": path}),
                });
            }
        }
    }
    operations
}

/// A template's spec without what may differ. The same amount can be written in several ways.
fn comparable(spec: &Option<VirtualMachineInstanceSpec>, live: bool) -> Value {
    let mut value = json!(spec);
    if let (true, Value::Object(fields)) = (live, &mut value) {
        fields.retain(|field, _| !LIVE.contains(&field.as_str()));
    }
    normalize(&mut value);
    value
}

fn normalize(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if AMOUNTS.contains(&name.as_str()) {
                    amount(value);
                }
                match value {
                    Value::Object(amounts) if AMOUNT_MAPS.contains(&name.as_str()) => {
                        amounts.iter_mut().for_each(|(_, value)| amount(value));
                    }
                    other => normalize(other),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(normalize),
        _ => {}
    }
}

fn amount(value: &mut Value) {
    if let Some(millis) = value.as_str().and_then(|text| Quantity(text.to_owned()).millis().ok()) {
        *value = Value::String(format!("{millis}m"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(template: Value) -> VirtualMachineSpec {
        serde_json::from_value(json!({"template": template})).unwrap()
    }

    fn spec(change: Value) -> Value {
        let mut spec = json!({"domain": {"memory": {"guest": "1Gi"}, "devices": {},
            "resources": {"requests": {"cpu": "500m"}}}, "nodeSelector": {"disk": "ssd"},
            "volumes": [{"name": "scratch", "emptyDisk": {"capacity": "1Gi"}}]});
        spec.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        json!({"metadata": {"labels": {"app": "web"}}, "spec": spec})
    }

    #[test]
    fn what_needs_a_restart_and_what_is_met() {
        let started = vm(spec(json!({})));
        let relabelled = json!({"metadata": {"labels": {"app": "mail"}}, "spec": spec(json!({}))["spec"]});
        let spelled = json!({"domain": {"memory": {"guest": "1024Mi"}, "devices": {},
            "resources": {"requests": {"cpu": "0.5"}}},
            "volumes": [{"name": "scratch", "emptyDisk": {"capacity": "1073741824"}}]});
        let larger = json!({"domain": {"memory": {"guest": "2Gi"}, "devices": {},
            "resources": {"requests": {"cpu": "500m"}}}});
        for (template, live, restart, met) in [
            (spec(json!({})), true, false, true),
            (relabelled, true, false, false),
            (spec(spelled.clone()), true, false, true),
            (spec(spelled), false, false, true),
            (spec(larger), true, true, false),
            (spec(json!({"hostname": "new"})), true, true, false),
            (spec(json!({"nodeSelector": {"disk": "hdd"}})), true, false, true),
            (spec(json!({"nodeSelector": {"disk": "hdd"}})), false, true, false),
            (
                spec(json!({"tolerations": [{"operator": "Exists"}], "affinity": {}})),
                true,
                false,
                true,
            ),
            (
                spec(json!({"tolerations": [{"operator": "Exists"}]})),
                false,
                true,
                false,
            ),
        ] {
            let now = vm(template);
            assert_eq!(needs_restart(&started, &now, live), restart, "{now:?} {live}");
            assert_eq!(is_met(&started, &now, live), met, "{now:?} {live}");
        }
        let mut strategy = started.clone();
        strategy.run_strategy = Some("Manual".to_owned());
        assert!(is_met(&started, &strategy, false));
    }

    #[test]
    fn where_a_vmi_may_be_is_brought_to_it() {
        let of = |change: Value| vm(spec(change)).template.spec.unwrap();
        let is = of(json!({}));
        for (wanted, operations) in [
            (json!({"hostname": "new"}), json!([])),
            (
                json!({"nodeSelector": {"disk": "hdd"}, "tolerations": [{"operator": "Exists"}]}),
                json!([
                    {"op": "test", "path": "/spec/nodeSelector", "value": {"disk": "ssd"}},
                    {"op": "replace", "path": "/spec/nodeSelector", "value": {"disk": "hdd"}},
                    {"op": "add", "path": "/spec/tolerations", "value": [{"operator": "Exists"}]},
                ]),
            ),
            (
                json!({"nodeSelector": {}}),
                json!([
                    {"op": "test", "path": "/spec/nodeSelector", "value": {"disk": "ssd"}},
                    {"op": "remove", "path": "/spec/nodeSelector"},
                ]),
            ),
        ] {
            assert_eq!(json!(live_changes(&is, &of(wanted.clone()))), operations, "{wanted}");
        }
    }
}
