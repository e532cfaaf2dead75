use serde_json::json;

use super::*;

fn key(path: &str) -> Key {
    Key {
        resource: "/things".into(),
        path: path.into(),
    }
}

fn object(value: u32) -> Value {
    json!({"metadata": {"uid": "u", "ownerReferences": [{"uid": "owner"}]}, "value": value})
}

async fn put(store: &Store, path: &str, value: u32) -> u64 {
    let expect = store
        .get(&key(path))
        .map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
    store
        .write(key(path), expect, Write::Put(object(value)))
        .await
        .unwrap()
        .revision
}

#[tokio::test]
async fn expectations_are_checked() {
    let store = Store::open(&Storage::Memory, Retention::default()).unwrap();
    let first = put(&store, "a/x", 1).await;
    assert_eq!(
        store.get(&key("a/x")).unwrap().value()["metadata"]["resourceVersion"],
        first.to_string()
    );
    assert!(matches!(
        store.write(key("a/x"), Expect::Absent, Write::Put(object(2))).await,
        Err(WriteError::Exists)
    ));
    assert!(matches!(
        store
            .write(key("a/x"), Expect::Revision(77), Write::Put(object(2)))
            .await,
        Err(WriteError::Conflict)
    ));
    assert!(matches!(
        store.write(key("a/y"), Expect::Revision(1), Write::Delete).await,
        Err(WriteError::Missing)
    ));
    assert_eq!(store.dependents("owner").len(), 1);
    store
        .write(key("a/x"), Expect::Revision(first), Write::Delete)
        .await
        .unwrap();
    assert!(store.get(&key("a/x")).is_none() && store.dependents("owner").is_empty());
}

#[tokio::test]
async fn lists_can_go_back() {
    let store = Store::open(&Storage::Memory, Retention::default()).unwrap();
    put(&store, "a/x", 1).await;
    let then = put(&store, "b/y", 1).await;
    put(&store, "a/x", 2).await;
    put(&store, "a/z", 1).await;
    let now = store.get(&key("b/y")).unwrap().revision;
    store
        .write(key("b/y"), Expect::Revision(now), Write::Delete)
        .await
        .unwrap();
    let paths = |namespace, at| -> Vec<String> {
        let list = store.list("/things", namespace, at, Page::default()).unwrap();
        list.objects
            .iter()
            .map(|o| format!("{}={}", o.key.path, o.value()["value"]))
            .collect()
    };
    assert_eq!(paths(None, Some(then)), ["a/x=1", "b/y=1"]);
    assert_eq!(paths(None, None), ["a/x=2", "a/z=1"]);
    assert_eq!(paths(Some("a"), None), ["a/x=2", "a/z=1"]);
    assert_eq!(paths(Some("b"), Some(then)), ["b/y=1"]);
}

#[tokio::test]
async fn the_log_survives_a_restart_and_is_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Storage::File(directory.path().join("store.db"));
    let retention = Retention {
        events: 10,
        bytes: 1 << 20,
    };
    let store = Store::open(&storage, retention).unwrap();
    put(&store, "a/gone", 1).await;
    let gone = store.get(&key("a/gone")).unwrap().revision;
    store
        .write(key("a/gone"), Expect::Revision(gone), Write::Delete)
        .await
        .unwrap();
    put(&store, "a/stays", 1).await;
    for value in 0..1500 {
        put(&store, "a/x", value).await;
    }
    let last = store.revision();
    drop(store);
    // The writer thread lets go of the file a moment after the last handle.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let store = loop {
        match Store::open(&storage, retention) {
            Ok(store) => break store,
            Err(_) if std::time::Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    };
    assert_eq!(store.revision(), last);
    assert_eq!(store.get(&key("a/x")).unwrap().value()["value"], 1499);
    assert!(store.get(&key("a/stays")).is_some() && store.get(&key("a/gone")).is_none());
    let (events, newest) = store.events_after("/things", last - 3).unwrap();
    assert_eq!((events.len(), newest), (3, last));
    assert_eq!(events[0].change, Change::Modified);
    assert!(events[0].previous.is_some());
    assert!(store.events_after("/things", 5).is_err());
    assert_eq!(put(&store, "a/new", 1).await, last + 1);
}
