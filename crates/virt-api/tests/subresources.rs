//! Subresources through the API server: codes, messages, effects, streams.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fixture;

use std::time::Duration;

use ferrovirt_protocol::launcher::Action;
use fixture::{Home, TOKEN};
use futures::{SinkExt, StreamExt};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

const VM: &str = "/namespaces/default/virtualmachines";
const VMI: &str = "/namespaces/default/virtualmachineinstances";

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn start_and_stop_change_the_spec() {
    let home = Home::open().await;
    home.create_vm("a", "Halted").await;
    let strategy = async || home.vms().get("a").await.unwrap().spec.run_strategy.unwrap();

    let (code, body) = home.ask("PUT", &format!("{VM}/a/stop"), "").await;
    assert_eq!(code, 409);
    assert_eq!(
        message(&body),
        "Operation cannot be fulfilled on virtualmachine.kubevirt.io \"a\": VM is not running"
    );
    assert_eq!(
        (&body["kind"], &body["details"]["name"]),
        (&Value::from("Status"), &Value::from("a"))
    );

    assert_eq!(
        home.ask("PUT", &format!("{VM}/a/start"), r#"{"dryRun":["All"]}"#)
            .await
            .0,
        202
    );
    assert_eq!(strategy().await, "Halted");
    assert_eq!(home.ask("PUT", &format!("{VM}/a/start"), "").await.0, 202);
    assert_eq!(strategy().await, "Always");
    assert_eq!(home.ask("PUT", &format!("{VM}/a/start"), "paused: true").await.0, 409);
    assert_eq!(home.ask("PUT", &format!("{VM}/a/stop"), "{}").await.0, 202);
    assert_eq!(strategy().await, "Halted");

    assert_eq!(
        home.ask("PUT", &format!("{VM}/a/start"), r#"{"dryRun":["Some"]}"#)
            .await
            .0,
        400
    );
    assert_eq!(home.ask("PUT", &format!("{VM}/a/start"), "{").await.0, 400);
    assert_eq!(home.ask("PUT", &format!("{VM}/none/start"), "").await.0, 404);
    assert_eq!(home.ask("GET", &format!("{VM}/a/start"), "").await.0, 405);
}

#[tokio::test]
async fn restart_queues_requests_and_force_shortens_the_grace_period() {
    let home = Home::open().await;
    home.create_vm("a", "Manual").await;
    assert_eq!(home.ask("PUT", &format!("{VM}/a/restart"), "").await.0, 409);
    home.create_vmi("a", "Running", &[]).await;
    assert_eq!(
        home.ask("PUT", &format!("{VM}/a/restart"), r#"{"gracePeriodSeconds":5}"#)
            .await
            .0,
        400
    );
    assert_eq!(
        home.ask("PUT", &format!("{VM}/a/restart"), r#"{"gracePeriodSeconds":0}"#)
            .await
            .0,
        202
    );
    let requests = home.vms().get("a").await.unwrap().status.unwrap().state_change_requests;
    let actions: Vec<&str> = requests.iter().map(|request| request.action.as_str()).collect();
    assert_eq!(actions, ["Stop", "Start"]);
    let grace = home
        .vmis()
        .get("a")
        .await
        .unwrap()
        .spec
        .termination_grace_period_seconds;
    assert_eq!(grace, Some(1));
    let (code, body) = home.ask("PUT", &format!("{VM}/a/restart"), "").await;
    assert_eq!(code, 409);
    assert!(message(&body).contains("already underway"), "{body}");
}

#[tokio::test]
async fn guests_are_acted_on_when_their_state_allows_it() {
    let home = Home::open().await;
    home.create_vmi("a", "Scheduled", &[]).await;
    #[expect(clippy::type_complexity, reason = "a row of the table")]
    let rows: [(&str, &[&str], &str, u16, Option<Action>); 16] = [
        ("Scheduled", &[], "pause", 409, None),
        ("Running", &[], "pause", 200, Some(Action::Pause)),
        ("Running", &["Paused"], "pause", 409, None),
        ("Running", &[], "unpause", 409, None),
        ("Running", &["Paused"], "unpause", 200, Some(Action::Unpause)),
        ("Running", &[], "softreboot", 200, Some(Action::SoftReboot)),
        ("Running", &["Paused"], "softreboot", 409, None),
        ("Running", &[], "reset", 200, Some(Action::Reset)),
        ("Pending", &[], "reset", 400, None),
        ("Running", &[], "freeze", 200, Some(Action::Freeze)),
        ("Scheduled", &[], "freeze", 409, None),
        ("Running", &[], "unfreeze", 200, Some(Action::Unfreeze)),
        ("Failed", &[], "unfreeze", 409, None),
        ("Running", &[], "sev/setupsession", 400, None),
        ("Running", &[], "addvolume", 501, None),
        ("Running", &[], "start", 404, None),
    ];
    for (phase, conditions, verb, expected, act) in rows {
        home.set_vmi("a", phase, conditions).await;
        let (code, body) = home.ask("PUT", &format!("{VMI}/a/{verb}"), "").await;
        assert_eq!(code, expected, "{verb} {phase} {conditions:?}: {body}");
        let done: Vec<Action> = home.node.take_acts().into_iter().map(|(_, action)| action).collect();
        assert_eq!(
            done,
            act.into_iter().collect::<Vec<_>>(),
            "{verb} {phase} {conditions:?}"
        );
    }
    home.set_vmi("a", "Running", &[]).await;
    assert_eq!(
        home.ask("PUT", &format!("{VMI}/a/pause"), r#"{"dryRun":["All"]}"#)
            .await
            .0,
        200
    );
    assert!(home.node.take_acts().is_empty());
    assert_eq!(home.ask("PUT", &format!("{VMI}/none/pause"), "").await.0, 404);
    let (code, body) = home.ask("PUT", &format!("{VMI}/a/nothing"), "").await;
    assert_eq!((code, body["reason"].as_str()), (404, Some("NotFound")));
}

#[tokio::test]
async fn freezing_knows_when_to_end() {
    let home = Home::open().await;
    home.create_vmi("a", "Running", &[]).await;
    let freeze = format!("{VMI}/a/freeze");
    for (body, code, done) in [
        ("", 200, Some("a for 0ns")),
        ("{}", 200, Some("a for 0ns")),
        (r#"{"unfreezeTimeout": "5m0s"}"#, 200, Some("a for 300s")),
        ("unfreezeTimeout: 1.5s", 200, Some("a for 1.5s")),
        (r#"{"unfreezeTimeout": "soon"}"#, 400, None),
        (r#"{"unfreezeTimeout": 5}"#, 400, None),
    ] {
        assert_eq!(home.ask("PUT", &freeze, body).await.0, code, "{body}");
        let acts: Vec<String> = home.node.take_acts().into_iter().map(|(guest, _)| guest).collect();
        assert_eq!(acts, done.into_iter().collect::<Vec<_>>(), "{body}");
    }
}

#[tokio::test]
async fn screens_are_shown() {
    let home = Home::open().await;
    home.create_vmi("a", "Scheduled", &[]).await;
    let (code, body) = home.ask("GET", &format!("{VMI}/a/vnc/screenshot"), "").await;
    assert_eq!((code, body["kind"].as_str()), (500, Some("Status")));
    home.set_vmi("a", "Running", &[]).await;
    for (query, said) in [("", "moved: false"), ("?moveCursor=true", "moved: true")] {
        let path = format!("/apis/subresources.kubevirt.io/v1{VMI}/a/vnc/screenshot{query}");
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        let response = home.client.send(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "image/png");
        let picture = response.into_body().collect_bytes().await.unwrap();
        let picture = String::from_utf8(picture.to_vec()).unwrap();
        assert!(picture.ends_with(said), "{picture}");
    }
    let odd = home
        .ask("GET", &format!("{VMI}/a/vnc/screenshot?moveCursor=x"), "")
        .await;
    assert_eq!(odd.0, 400);
}

#[tokio::test]
async fn evacuations_are_cancelled() {
    let home = Home::open().await;
    home.create_vm("a", "Manual").await;
    let cancel = |kind: &str| format!("{kind}/a/evacuate/cancel");
    assert_eq!(home.ask("PUT", &cancel(VM), "").await.0, 409);
    assert_eq!(home.ask("PUT", &cancel(VMI), "").await.0, 404);
    assert_eq!(home.ask("PUT", &format!("{VM}/none/evacuate/cancel"), "").await.0, 404);
    home.create_vmi("a", "Running", &[]).await;
    let mark = async || {
        let api: kube::Api<ferrovirt_api::v1::VirtualMachineInstance> =
            kube::Api::namespaced(home.controller.clone(), "default");
        let patch = kube::api::Patch::Merge(serde_json::json!({"status": {"evacuationNodeName": "n"}}));
        api.patch_status("a", &kube::api::PatchParams::default(), &patch)
            .await
            .unwrap();
    };
    let marked = async || home.vmis().get("a").await.unwrap().status.unwrap().evacuation_node_name;
    assert_eq!(home.ask("PUT", &cancel(VM), "").await.0, 200, "nothing to do");
    for kind in [VM, VMI] {
        mark().await;
        assert_eq!(home.ask("PUT", &cancel(kind), r#"{"dryRun": ["All"]}"#).await.0, 200);
        assert_eq!(
            home.ask("PUT", &cancel(kind), r#"{"evacuationNodeName": "m"}"#).await.0,
            400
        );
        assert_eq!(marked().await.as_deref(), Some("n"), "{kind}");
        let body = r#"{"dryRun": null, "evacuationNodeName": "n"}"#;
        assert_eq!(home.ask("PUT", &cancel(kind), body).await.0, 200);
        assert_eq!(marked().await, None, "{kind}");
    }
}

#[tokio::test]
async fn a_vm_without_instancetype_is_its_own_expansion() {
    let home = Home::open().await;
    let vm = home.create_vm("a", "Halted").await;
    let (code, body) = home.ask("GET", &format!("{VM}/a/expand-spec"), "").await;
    assert_eq!((code, &body["kind"]), (200, &Value::from("VirtualMachine")));
    assert_eq!(body, serde_json::to_value(&vm).unwrap());
    assert_eq!(home.ask("GET", &format!("{VM}/b/expand-spec"), "").await.0, 404);

    let given = "/namespaces/default/expand-vm-spec";
    let text = serde_json::to_string(&fixture::vm("new", "Always")).unwrap();
    let (code, body) = home.ask("PUT", given, &text).await;
    assert_eq!((code, &body["metadata"]["name"]), (200, &Value::from("new")));
    for (body, code) in [
        (String::new(), 400),
        ("{".into(), 400),
        (text.replace(r#""namespace":"default""#, r#""namespace":"other""#), 400),
        (
            text.replace(r#""runStrategy""#, r#""instancetype":{"name":"m1"},"runStrategy""#),
            501,
        ),
    ] {
        assert_eq!(home.ask("PUT", given, &body).await.0, code, "{body}");
    }
}

#[tokio::test]
async fn what_no_machine_has_is_refused() {
    let home = Home::open().await;
    home.create_vmi("a", "Running", &[]).await;
    for (method, sub, code) in [
        ("GET", "usbredir", 409),
        ("GET", "vsock?port=1", 400),
        ("GET", "sev/fetchcertchain", 409),
        ("GET", "sev/querylaunchmeasurement", 409),
        ("PUT", "sev/setupsession", 409),
        ("PUT", "sev/injectlaunchsecret", 409),
        ("PUT", "usbredir", 405),
    ] {
        let given = if sub == "sev/setupsession" { SESSION } else { SECRET };
        let given = if method == "PUT" { given } else { "" };
        let (got, body) = home.ask(method, &format!("{VMI}/a/{sub}"), given).await;
        assert_eq!(got, code, "{sub}: {body}");
        if sub.starts_with("sev/") {
            assert!(message(&body).contains("Attestation not requested"), "{body}");
        }
    }
    let kubevirt = serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"},
        "spec": {"configuration": {"developerConfiguration": {"disabledFeatureGates": ["WorkloadEncryptionSEV"]}}},
    });
    let kubevirt = serde_json::from_value(kubevirt).unwrap();
    let parameters = kube::api::PostParams::default();
    home.kubevirts().create(&parameters, &kubevirt).await.unwrap();
    let (code, body) = home.ask("GET", &format!("{VMI}/a/sev/fetchcertchain"), "").await;
    assert_eq!(code, 400, "{body}");
    assert!(
        message(&body).contains("WorkloadEncryptionSEV feature gate not enabled"),
        "{body}"
    );
}

const SESSION: &str = r#"{"session":"QUFB","dhCert":"QkJC"}"#;
const SECRET: &str = r#"{"header":"QUFB","secret":"QkJC"}"#;

#[tokio::test]
async fn an_owner_attests_its_guest() {
    let home = Home::open().await;
    home.create_attested_vmi("a").await;
    let large = serde_json::json!({"session": "A".repeat(21852), "dhCert": "QkJC"}).to_string();
    let no_header = r#"{"secret":"QkJC"}"#;
    for (phase, conditions, method, sub, given, code) in [
        ("Scheduling", &[][..], "GET", "fetchcertchain", "", 409),
        ("Scheduled", &[], "GET", "fetchcertchain", "", 200),
        ("Scheduling", &[], "PUT", "setupsession", SESSION, 409),
        ("Scheduled", &[], "PUT", "setupsession", "", 400),
        ("Scheduled", &[], "PUT", "setupsession", r#"{"session":"QUFB"}"#, 400),
        (
            "Scheduled",
            &[],
            "PUT",
            "setupsession",
            r#"{"session":"QUFB","dhCert":"?"}"#,
            400,
        ),
        ("Scheduled", &[], "PUT", "setupsession", large.as_str(), 400),
        ("Scheduled", &[], "GET", "querylaunchmeasurement", "", 409),
        ("Scheduled", &[], "PUT", "setupsession", SESSION, 202),
        ("Scheduled", &[], "PUT", "setupsession", SESSION, 409),
        ("Running", &[], "PUT", "setupsession", SESSION, 409),
        ("Running", &[], "GET", "fetchcertchain", "", 200),
        ("Running", &[], "GET", "querylaunchmeasurement", "", 409),
        ("Running", &["Paused"], "GET", "querylaunchmeasurement", "", 200),
        ("Running", &[], "PUT", "injectlaunchsecret", SECRET, 409),
        ("Running", &["Paused"], "PUT", "injectlaunchsecret", no_header, 400),
        ("Running", &["Paused"], "PUT", "injectlaunchsecret", SECRET, 200),
        (
            "Running",
            &["Paused"],
            "PUT",
            "injectlaunchsecret",
            r#"{"header":"Tk8=","secret":"QkJC"}"#,
            500,
        ),
    ] {
        home.set_vmi("a", phase, conditions).await;
        let (got, body) = home.ask(method, &format!("{VMI}/a/sev/{sub}"), given).await;
        assert_eq!(got, code, "{sub} {phase} {conditions:?} {given:.80}: {body}");
        match (sub, code) {
            ("fetchcertchain", 200) => {
                let expected = serde_json::json!({"pdh": "key of a's node", "certChain": "QUFB"});
                assert_eq!(body, expected);
            }
            ("querylaunchmeasurement", 200) => {
                assert_eq!(body, serde_json::json!({"measurement": "a as it is", "policy": 3}));
            }
            (_, 500) => assert!(message(&body).contains("the guest runs without AMD SEV"), "{body}"),
            _ => {}
        }
    }
    assert_eq!(*home.node.secrets.lock().unwrap(), ["a QUFB QkJC"]);
    let vmi = home.vmis().get("a").await.unwrap();
    let sev = vmi.spec.domain.launch_security.unwrap().sev.unwrap();
    assert_eq!(
        (sev.session.as_deref(), sev.dh_cert.as_deref()),
        (Some("QUFB"), Some("QkJC"))
    );
}

#[tokio::test]
async fn what_the_agent_knows() {
    let home = Home::open().await;
    home.create_vmi("a", "Running", &[]).await;
    let (code, body) = home.ask("GET", &format!("{VMI}/a/guestosinfo"), "").await;
    assert_eq!(code, 500);
    assert!(
        message(&body).contains("VMI does not have guest agent connected"),
        "{body}"
    );
    home.set_vmi("a", "Running", &["AgentConnected"]).await;
    assert_eq!(
        home.ask("GET", &format!("{VMI}/a/guestosinfo"), "").await.1["hostname"],
        "a"
    );
    assert_eq!(
        home.ask("GET", &format!("{VMI}/a/userlist"), "").await.1["items"][0]["userName"],
        "jane"
    );
    assert_eq!(
        home.ask("GET", &format!("{VMI}/a/filesystemlist"), "").await.1["items"][0]["diskName"],
        "vda1"
    );
}

#[tokio::test]
async fn the_group_describes_itself() {
    let home = Home::open().await;
    let (code, version) = home.ask("GET", "/version", "").await;
    assert_eq!(
        (code, version["gitVersion"].as_str()),
        (200, Some(concat!("v", env!("CARGO_PKG_VERSION"))))
    );
    assert_eq!(
        home.ask("GET", "/healthz", "").await.1["apiserver"]["connectivity"],
        "ok"
    );
    let list = home
        .client
        .list_api_group_resources("subresources.kubevirt.io/v1")
        .await
        .unwrap();
    let names: Vec<&str> = list.resources.iter().map(|resource| resource.name.as_str()).collect();
    for name in [
        "virtualmachines/start",
        "virtualmachineinstances/console",
        "virtualmachineinstances/portforward",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(names.contains(&"expand-vm-spec"), "{names:?}");
    assert!(names.contains(&"virtualmachineinstances/vsock"), "{names:?}");
    assert!(!names.contains(&"virtualmachineinstances/addvolume"), "{names:?}");
}

type Socket = WebSocketStream<TcpStream>;

/// A websocket of a VMI's subresource, or the code of the refusal and its message.
async fn connect(home: &Home, sub: &str) -> Result<Socket, (u16, String)> {
    let address = home.listen().await;
    let url = format!("ws://{address}/apis/subresources.kubevirt.io/v1{VMI}/{sub}");
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert(
        "authorization",
        HeaderValue::from_str(&format!("Bearer {TOKEN}")).unwrap(),
    );
    headers.insert("sec-websocket-protocol", HeaderValue::from_static("plain.kubevirt.io"));
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, response)) => {
            assert_eq!(response.headers()["sec-websocket-protocol"], "plain.kubevirt.io");
            Ok(socket)
        }
        Err(WsError::Http(response)) => {
            let code = response.status().as_u16();
            let body: Value =
                serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap_or_default();
            Err((code, message(&body).to_owned()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Reads data until `wanted` was seen.
async fn expect(socket: &mut Socket, wanted: &[u8]) {
    let mut seen = Vec::new();
    let read = async {
        while !seen.windows(wanted.len()).any(|window| window == wanted) {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(data) => seen.extend_from_slice(&data),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
}

/// Reads until the server closes.
async fn closed(socket: &mut Socket) {
    let read = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
}

#[tokio::test]
async fn consoles() {
    let home = Home::open().await;
    home.create_vmi("a", "Running", &[]).await;
    let mut first = connect(&home, "a/console").await.unwrap();
    expect(&mut first, b"hello from default/a/console\r\n").await;
    first.send(Message::binary(b"\x00\xffls\r".to_vec())).await.unwrap();
    expect(&mut first, b"\x00\xffls\r").await;
    let mut second = connect(&home, "a/console").await.unwrap();
    expect(&mut second, b"hello").await;
    closed(&mut first).await;
    second.send(Message::binary(b"still here".to_vec())).await.unwrap();
    expect(&mut second, b"still here").await;

    home.set_vmi("a", "Scheduling", &[]).await;
    assert_eq!(connect(&home, "a/console").await.unwrap_err().0, 400);
    home.set_vmi("a", "Failed", &[]).await;
    assert_eq!(connect(&home, "a/console").await.unwrap_err().0, 409);
    assert_eq!(connect(&home, "none/console").await.unwrap_err().0, 404);
    let (code, body) = home.ask("GET", &format!("{VMI}/a/console"), "").await;
    assert_eq!(code, 409, "{body}");
    home.set_vmi("a", "Running", &[]).await;
    let (code, body) = home.ask("GET", &format!("{VMI}/a/console"), "").await;
    assert_eq!(code, 400);
    assert!(message(&body).contains("upgrade to websocket"), "{body}");
}

#[tokio::test]
async fn virtual_sockets() {
    let home = Home::open().await;
    home.create_vmi_with_sockets("a").await;
    for (query, expected) in [
        ("port=1024", "vsock 1024 true"),
        ("port=1025&tls=true", "vsock 1025 true"),
        ("port=1026&tls=false", "vsock 1026 false"),
    ] {
        let mut socket = connect(&home, &format!("a/vsock?{query}")).await.unwrap();
        expect(&mut socket, format!("hello from default/a/{expected}\r\n").as_bytes()).await;
        socket.send(Message::binary(b"to the guest".to_vec())).await.unwrap();
        expect(&mut socket, b"to the guest").await;
    }
    for query in ["", "?port=0", "?port=many", "?port=1024&tls=perhaps"] {
        let (code, why) = connect(&home, &format!("a/vsock{query}")).await.unwrap_err();
        assert_eq!(code, 400, "{query}: {why}");
    }
    home.create_vmi("b", "Running", &[]).await;
    assert_eq!(connect(&home, "b/vsock?port=1024").await.unwrap_err().0, 400);
}

#[tokio::test]
async fn displays() {
    let home = Home::open().await;
    home.create_vmi("a", "Running", &[]).await;
    let mut first = connect(&home, "a/vnc?preserveSession=true").await.unwrap();
    expect(&mut first, b"hello from default/a/vnc").await;
    let (code, message) = connect(&home, "a/vnc?preserveSession=true").await.unwrap_err();
    assert_eq!(code, 500);
    assert!(message.contains("active session"), "{message}");
    let mut second = connect(&home, "a/vnc").await.unwrap();
    expect(&mut second, b"hello").await;
    closed(&mut first).await;
}

#[tokio::test]
async fn ports() {
    let home = Home::open().await;
    home.create_vmi("a", "Running", &[]).await;
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = guest.local_addr().unwrap().port();
    let mut socket = connect(&home, &format!("a/portforward/{port}/tcp")).await.unwrap();
    let (mut inside, _) = guest.accept().await.unwrap();
    socket.send(Message::binary(b"GET /".to_vec())).await.unwrap();
    let mut asked = [0; 5];
    inside.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"GET /");
    inside.write_all(b"200 OK").await.unwrap();
    drop(inside);
    expect(&mut socket, b"200 OK").await;
    closed(&mut socket).await;

    drop(guest);
    let (code, message) = connect(&home, &format!("a/portforward/{port}")).await.unwrap_err();
    assert_eq!(code, 500);
    assert!(message.contains("dialing VM default/a at 127.0.0.1"), "{message}");
    assert!(
        message.ends_with("nothing in the guest listens on this port"),
        "{message}"
    );

    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = udp.local_addr().unwrap().port();
    let mut socket = connect(&home, &format!("a/portforward/{port}/udp")).await.unwrap();
    socket.send(Message::binary(b"query".to_vec())).await.unwrap();
    let mut buffer = [0; 16];
    let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"query");
    udp.send_to(b"answer", from).await.unwrap();
    expect(&mut socket, b"answer").await;

    home.set_vmi("a", "Running", &["Paused"]).await;
    assert_eq!(
        connect(&home, &format!("a/portforward/{port}")).await.unwrap_err().0,
        409
    );
}

#[tokio::test]
async fn ports_of_a_vm_that_is_not_there_or_not_started() {
    let home = Home::open().await;
    // A VMI of somebody's, which has a VM's name and no VM.
    home.create_vmi("a", "Running", &[]).await;
    let path = "/namespaces/default/virtualmachines/a/portforward/22";
    let (code, status) = home.ask("GET", path, "").await;
    assert_eq!(
        (code, &status["details"]["kind"]),
        (404, &json!("virtualmachine")),
        "{status}"
    );
    home.create_vm("a", "Halted").await;
    let (code, status) = home.ask("GET", path, "").await;
    assert_eq!(code, 409, "{status}");
    assert!(
        status["message"].as_str().unwrap().ends_with("VMI is not started"),
        "{status}"
    );
}

#[tokio::test]
async fn the_image_of_guestfs_is_told_where_pods_of_it_can_run() {
    let home = Home::open().await;
    let (code, status) = home.ask("GET", "/guestfs", "").await;
    assert_eq!((code, &status["reason"]), (501, &json!("NotImplemented")), "{status}");
}
