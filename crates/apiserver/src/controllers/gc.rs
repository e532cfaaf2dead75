//! Owners and dependents.

use std::sync::Arc;

use serde_json::Value;

use super::{context, delete_object, gone_is_fine};
use crate::failure::{Failure, Result};
use crate::rest::delete::{FOREGROUND, ORPHAN, Propagation};
use crate::rest::meta;
use crate::rest::write::{Change, modify};
use crate::server::Inner;
use crate::store::{Key, Stored};

/// What an owner reference points to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// An object that stays.
    Solid,
    /// An object that goes after its dependents.
    Waiting,
    /// Nothing.
    Absent,
}

fn owner_state(server: &Inner, dependent: &Stored, uid: &str) -> Owner {
    let Some(owner) = server.store.by_uid(uid) else {
        return Owner::Absent;
    };
    let namespace = owner.key.namespace();
    // An owner in another namespace is no owner.
    if !namespace.is_empty() && namespace != dependent.key.namespace() {
        return Owner::Absent;
    }
    let owner = owner.value();
    if meta::deleting(&owner) && meta::finalizers(&owner).iter().any(|f| f == FOREGROUND) {
        Owner::Waiting
    } else {
        Owner::Solid
    }
}

/// Deletes an object whose owners are all gone; drops references to some that are.
///
/// # Errors
/// The delete or update was refused.
pub(super) async fn dependent(server: &Arc<Inner>, key: &Key) -> Result<()> {
    let Some(stored) = server.store.get(key).filter(|stored| !stored.owners.is_empty()) else {
        return Ok(());
    };
    let object = stored.value();
    let finalizers = meta::finalizers(&object);
    let waits = finalizers.iter().any(|finalizer| finalizer == FOREGROUND);
    if meta::deleting(&object) && !waits {
        return Ok(());
    }
    let states: Vec<(&str, Owner)> = stored
        .owners
        .iter()
        .map(|uid| (&**uid, owner_state(server, &stored, uid)))
        .collect();
    if states.iter().any(|(_, state)| *state == Owner::Solid) {
        let lost: Vec<&str> = states
            .iter()
            .filter(|(_, state)| *state != Owner::Solid)
            .map(|(uid, _)| *uid)
            .collect();
        return if lost.is_empty() {
            Ok(())
        } else {
            release(server, &stored, &lost).await
        };
    }
    if meta::deleting(&object) {
        return Ok(());
    }
    let waiting = states.iter().any(|(_, state)| *state == Owner::Waiting);
    let propagation = if finalizers.iter().any(|finalizer| finalizer == ORPHAN) {
        Propagation::Orphan
    } else if waits || (waiting && !server.store.dependents(&stored.uid).is_empty()) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    delete_object(server, &stored, Some(propagation)).await
}

/// Removes the references to these owners.
async fn release(server: &Arc<Inner>, stored: &Stored, owners: &[&str]) -> Result<()> {
    let Some(mut context) = context(server, &stored.key) else {
        return Ok(());
    };
    let (uid, owners): (String, Vec<String>) = (
        stored.uid.to_string(),
        owners.iter().map(|uid| (*uid).to_owned()).collect(),
    );
    let name = stored.key.name().to_owned();
    let compute = move |current: Option<&Value>| {
        let mut next = current.cloned().unwrap_or_default();
        if meta::text(&next, "uid") != uid {
            return Err(Failure::not_found("", "", ""));
        }
        let metadata = meta::map_mut(&mut next);
        if let Some(list) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) {
            list.retain(|owner| !owners.iter().any(|uid| owner["uid"] == *uid));
        }
        Ok(Change::new(next))
    };
    gone_is_fine(modify(&mut context, &name, false, &compute).await.map(|_| ()))
}

/// Lets an owner go that waits for its dependents, if nothing blocks it. Returns the dependents that have to go first.
///
/// # Errors
/// An update was refused.
pub(super) async fn owner(server: &Arc<Inner>, uid: &str) -> Result<Vec<Key>> {
    let Some(stored) = server.store.by_uid(uid) else {
        return Ok(Vec::new());
    };
    let object = stored.value();
    if !meta::deleting(&object) {
        return Ok(Vec::new());
    }
    let finalizers = meta::finalizers(&object);
    let namespace = stored.key.namespace();
    let mut dependents = server.store.dependents(uid);
    dependents.retain(|dependent| namespace.is_empty() || dependent.key.namespace() == namespace);
    if finalizers.iter().any(|finalizer| finalizer == ORPHAN) {
        for dependent in &dependents {
            release(server, dependent, &[uid]).await?;
        }
        remove_finalizer(server, &stored, ORPHAN).await?;
        return Ok(Vec::new());
    }
    if !finalizers.iter().any(|finalizer| finalizer == FOREGROUND) {
        return Ok(Vec::new());
    }
    let blocks = |dependent: &Arc<Stored>| {
        let dependent = dependent.value();
        let mut owners = dependent["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        owners.any(|owner| owner["uid"] == uid && owner["blockOwnerDeletion"] == true)
    };
    if !dependents.iter().any(blocks) {
        remove_finalizer(server, &stored, FOREGROUND).await?;
        return Ok(Vec::new());
    }
    Ok(dependents.into_iter().map(|dependent| dependent.key.clone()).collect())
}

/// Removes a finalizer, which may be the end of the object.
///
/// # Errors
/// The update was refused.
pub(super) async fn remove_finalizer(server: &Arc<Inner>, stored: &Stored, finalizer: &'static str) -> Result<()> {
    let Some(mut context) = context(server, &stored.key) else {
        return Ok(());
    };
    let (uid, name) = (stored.uid.to_string(), stored.key.name().to_owned());
    let compute = move |current: Option<&Value>| {
        let mut next = current.cloned().unwrap_or_default();
        if meta::text(&next, "uid") != uid {
            return Err(Failure::not_found("", "", ""));
        }
        let mut finalizers = meta::finalizers(&next);
        finalizers.retain(|other| other != finalizer);
        meta::set_finalizers(&mut next, &finalizers);
        Ok(Change::new(next))
    };
    gone_is_fine(modify(&mut context, &name, false, &compute).await.map(|_| ()))
}
