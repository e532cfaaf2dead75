//! What becomes of an agent's answers, whatever they are.

use proptest::prelude::*;

use super::*;

/// A report of an agent that answers each command by `answer`.
fn report_of(answer: impl Fn(&str) -> Result<String, AgentError>) -> Report {
    report(|command| {
        let command: Value = serde_json::from_str(command).unwrap();
        answer(command["execute"].as_str().unwrap())
    })
}

fn returned(value: &Value) -> Result<String, AgentError> {
    Ok(json!({ "return": value }).to_string())
}

fn honest(command: &str) -> Value {
    match command {
        "guest-info" => json!({"version": "7.2", "supported_commands": [{"name": "guest-ping", "enabled": true}]}),
        "guest-fsfreeze-status" => json!("thawed"),
        "guest-get-osinfo" => json!({"id": "debian", "pretty-name": "Debian"}),
        "guest-get-host-name" => json!({"host-name": "vm"}),
        "guest-get-timezone" => json!({"zone": "UTC", "offset": 0}),
        "guest-get-users" => json!([{"user": "root", "login-time": 1.5}]),
        "guest-get-fsinfo" => json!([{"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 1_u64 << 40,
            "disk": [{"bus-type": "virtio", "serial": "S1", "dev": "/dev/vda1", "unit": 0}, {"bus-type": "scsi"}]}]),
        "guest-network-get-interfaces" => json!([
            {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
            {"name": "eth0", "hardware-address": "52:54:00:aa:bb:cc",
                "ip-addresses": [{"ip-address": "fe80::1"}, {"ip-address": "10.0.2.2"}]},
        ]),
        other => panic!("{other} is not asked"),
    }
}

#[test]
fn an_honest_agent_is_passed_on() {
    let report = report_of(|command| returned(&honest(command)));
    assert!(report.complete);
    let said: Value = serde_json::from_slice(&report.json).unwrap();
    assert_eq!(
        said,
        json!({
            "fsFreezeStatus": "thawed",
            "guestAgentVersion": "7.2",
            "supportedCommands": [{"name": "guest-ping", "enabled": true}],
            "hostname": "vm",
            "os": {"id": "debian", "prettyName": "Debian"},
            "timezone": "UTC, 0",
            "userList": [{"userName": "root", "loginTime": 1.5}],
            "fsInfo": {"disks": [{"diskName": "vda1", "mountPoint": "/", "fileSystemType": "ext4",
                "usedBytes": 1_u64 << 40, "totalBytes": 0,
                "disk": [{"busType": "virtio", "serial": "S1"}, {"busType": "scsi"}]}]},
            "interfaces": [{"interfaceName": "eth0", "mac": "52:54:00:aa:bb:cc", "ipAddress": "10.0.2.2",
                "ipAddresses": ["10.0.2.2", "fe80::1"], "infoSource": "guest-agent"}],
        })
    );
}

#[test]
fn one_that_does_not_answer_well_is_told_by_what_is_left() {
    type Answer = fn() -> Result<String, AgentError>;
    let bad: [(&str, Answer); 6] = [
        ("stall", || Err(AgentError::NoAnswer("no answer in time".into()))),
        ("close", || Err(AgentError::NoAnswer("the channel was closed".into()))),
        ("flood", || Err(AgentError::TooLong(100 << 20))),
        ("garbage", || Ok("\u{1}\u{2}{[".into())),
        ("another type", || Ok(json!({"return": 7}).to_string())),
        ("an error", || {
            Ok(json!({"error": {"class": "x", "desc": "x".repeat(1 << 19)}}).to_string())
        }),
    ];
    for (what, answer) in bad {
        let silent = report_of(|_| answer());
        assert_eq!(
            (silent.json.len(), silent.complete),
            (0, false),
            "{what} from the beginning"
        );
        let some = report_of(|command| match command {
            "guest-get-users" => answer(),
            other => returned(&honest(other)),
        });
        let said: Value = serde_json::from_slice(&some.json).unwrap();
        assert!(!some.complete && said["hostname"] == "vm", "{what}: {said}");
    }
}

#[test]
fn what_was_known_before_file_systems_froze_holds() {
    let before = report_of(|command| returned(&honest(command)));
    let frozen = || {
        report_of(|command| match command {
            "guest-info" => returned(&honest(command)),
            "guest-fsfreeze-status" => returned(&json!("frozen")),
            other => panic!("{other} would have to write"),
        })
    };
    assert!(frozen().complete);
    let said = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap();
    let mut expected = said(&before.json);
    expected["fsFreezeStatus"] = json!("frozen");
    assert_eq!(said(&frozen().over(&before.json)), expected);
    assert_eq!(
        said(&with_freeze_status(&frozen().over(&before.json), false)),
        said(&before.json)
    );
    let alone = said(&frozen().over(b""));
    assert_eq!(
        (&alone["fsFreezeStatus"], &alone["guestAgentVersion"]),
        (&json!("frozen"), &json!("7.2"))
    );
    assert_eq!(
        said(&with_freeze_status(b"", true)),
        json!({"fsFreezeStatus": "frozen"})
    );
}

#[test]
fn a_state_of_file_systems_that_nobody_knows_is_not_told() {
    for lie in [
        json!("melting"),
        json!("x".repeat(1 << 19)),
        json!(7),
        json!(["frozen"]),
    ] {
        let report = report_of(|command| match command {
            "guest-fsfreeze-status" => returned(&lie),
            other => returned(&honest(other)),
        });
        let said: Value = serde_json::from_slice(&report.json).unwrap();
        assert_eq!(
            (&said["fsFreezeStatus"], &said["hostname"]),
            (&Value::Null, &json!("vm"))
        );
    }
}

#[test]
fn a_flood_is_cut() {
    let long = "\"\u{7}".repeat(1000);
    let addresses: Vec<Value> = (0..2000)
        .map(|n| json!({"ip-address": format!("2001:db8::{n:x}")}))
        .collect();
    let flood = report_of(|command| {
        let many = |one: Value| Value::Array(vec![one; 2000]);
        returned(&match command {
            "guest-info" => {
                json!({"version": long, "supported_commands": many(json!({"name": long, "enabled": true}))})
            }
            "guest-get-users" => many(json!({"user": long, "domain": long})),
            "guest-get-fsinfo" => many(json!({"name": long, "mountpoint": long, "type": long,
                "disk": vec![json!({"bus-type": long, "serial": long}); 100]})),
            "guest-network-get-interfaces" => {
                json!(vec![
                    json!({"name": long, "hardware-address": long, "ip-addresses": addresses});
                    100
                ])
            }
            other => honest(other),
        })
    });
    let said: Value = serde_json::from_slice(&flood.json).unwrap();
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    assert_eq!(count(&said["userList"]), MAX_ITEMS);
    assert_eq!(count(&said["fsInfo"]["disks"]), MAX_ITEMS);
    assert_eq!(count(&said["supportedCommands"]), MAX_ITEMS);
    assert_eq!(count(&said["interfaces"]), MAX_INTERFACES);
    assert_eq!(count(&said["interfaces"][0]["ipAddresses"]), MAX_ADDRESSES);
    assert!(flood.json.len() < MAX_ANSWER / 2, "{}", flood.json.len());
}

#[test]
fn complaints_are_short() {
    let long = json!({"return": "x".repeat(1 << 19)}).to_string();
    match read::<Info>(&long) {
        Err(AgentError::Unreadable(why)) => assert!(why.len() <= MAX_TEXT),
        other => panic!("{:?}", other.map(|info| info.version)),
    }
}

proptest! {
    #[test]
    fn any_answer_leaves_a_report_that_can_be_read(answers in proptest::collection::vec("\\PC{0,200}", 7)) {
        let report = report_of(|command| match command.len() % 3 {
            0 => Ok(answers[command.len() % 7].clone()),
            1 => returned(&json!(answers)),
            _ => returned(&honest(command)),
        });
        prop_assert!(report.json.is_empty() || serde_json::from_slice::<Value>(&report.json).is_ok());
    }
}
