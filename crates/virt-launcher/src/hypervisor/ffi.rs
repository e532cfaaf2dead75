//! The part of libvirt that the crate `virt` does not wrap: callbacks, statistics and launch security.
#![expect(unsafe_code, reason = "C callbacks and records; each block says why it is sound")]

use std::ffi::{CStr, CString};
use std::os::raw::{c_int, c_void};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// What a callback reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A domain lifecycle event and its detail, as libvirt numbers them.
    Lifecycle(c_int, c_int),
    /// The guest agent connected or went away.
    Agent(bool),
    /// The connection was lost.
    Closed,
}

/// Called on libvirt's event thread; must return at once.
pub type Listener = Box<dyn Fn(Signal) + Send>;

struct Context(Listener);

/// Tells libvirt's client never to start a daemon of its own.
///
/// # Assumptions
/// Called before any thread exists.
pub fn forbid_autostart() {
    // SAFETY: the caller is the only thread, so no one reads the environment meanwhile.
    unsafe { std::env::set_var("LIBVIRT_AUTOSTART", "0") };
}

/// Reports lifecycle and agent events of all domains and the loss of `connection`, until it is dropped after
/// [`unsubscribe`].
pub fn subscribe(connection: &Connect, listener: impl Fn() -> Listener) -> Result<(), Error> {
    // SAFETY: the callbacks have exactly the types that libvirt documents for these event ids (the generic type is
    // its convention); the context stays alive until libvirt calls `free`.
    unsafe {
        let lifecycle: unsafe extern "C" fn(_, _, c_int, c_int, *mut c_void) -> c_int = on_lifecycle;
        register(
            connection,
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            generic(lifecycle as *const ()),
            listener(),
        )?;
        let agent: unsafe extern "C" fn(_, _, c_int, c_int, *mut c_void) = on_agent;
        register(
            connection,
            sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
            generic(agent as *const ()),
            listener(),
        )?;
        let context = Box::into_raw(Box::new(Context(listener()))).cast();
        if sys::virConnectRegisterCloseCallback(connection.as_ptr(), Some(on_close), context, Some(free)) < 0 {
            free(context);
            return Err(Error::last_error());
        }
    }
    Ok(())
}

/// Takes back the close callback, which else would keep the connection alive.
pub fn unsubscribe(connection: &Connect) {
    // SAFETY: the connection is alive; libvirt frees the context.
    unsafe { sys::virConnectUnregisterCloseCallback(connection.as_ptr(), Some(on_close)) };
}

/// A statistic's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A count, a size or a time; never negative.
    Number(u64),
    /// A name.
    Text(String),
}

/// What libvirt can say about a domain without waiting for anybody who is busy with it.
pub fn stats(domain: &Domain) -> Result<Vec<(String, Value)>, Error> {
    let kinds = sys::VIR_DOMAIN_STATS_STATE
        | sys::VIR_DOMAIN_STATS_CPU_TOTAL
        | sys::VIR_DOMAIN_STATS_BALLOON
        | sys::VIR_DOMAIN_STATS_VCPU
        | sys::VIR_DOMAIN_STATS_INTERFACE
        | sys::VIR_DOMAIN_STATS_BLOCK;
    // SAFETY: the pointer is used while the domain is borrowed.
    let mut domains = [unsafe { domain.as_ptr() }, std::ptr::null_mut()];
    let mut records: *mut sys::virDomainStatsRecordPtr = std::ptr::null_mut();
    let flags = sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    // SAFETY: the list of domains ends with a null pointer, and the domain is alive.
    let count = unsafe { sys::virDomainListGetStats(domains.as_mut_ptr(), kinds, &raw mut records, flags) };
    if count < 0 {
        return Err(Error::last_error());
    }
    let mut found = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: libvirt returned `count` records, each with `nparams` parameters, which live until they are freed below.
        let params = unsafe {
            let record = &**records.add(index);
            std::slice::from_raw_parts(record.params, usize::try_from(record.nparams).unwrap_or(0))
        };
        // SAFETY: the parameters are libvirt's.
        found.extend(params.iter().filter_map(|param| unsafe { named(param) }));
    }
    // SAFETY: the list is libvirt's, and nothing of it is used any more.
    unsafe { sys::virDomainStatsRecordListFree(records) };
    Ok(found)
}

/// What libvirt knows of the node's AMD SEV.
pub fn sev_platform(connection: &Connect) -> Result<Vec<(String, Value)>, Error> {
    // SAFETY: the connection is alive, and the list is libvirt's to make.
    parameters(|list, count| unsafe { sys::virNodeGetSEVInfo(connection.as_ptr(), list, count, 0) })
}

/// What libvirt knows of how a domain's memory was protected when it was started.
pub fn launch_security(domain: &Domain) -> Result<Vec<(String, Value)>, Error> {
    // SAFETY: the domain is alive, and the list is libvirt's to make.
    parameters(|list, count| unsafe { sys::virDomainGetLaunchSecurityInfo(domain.as_ptr(), list, count, 0) })
}

/// Calls what makes a list of parameters.
fn parameters(
    call: impl FnOnce(*mut sys::virTypedParameterPtr, *mut c_int) -> c_int,
) -> Result<Vec<(String, Value)>, Error> {
    let mut list: sys::virTypedParameterPtr = std::ptr::null_mut();
    let mut count: c_int = 0;
    if call(&raw mut list, &raw mut count) < 0 {
        return Err(Error::last_error());
    }
    if list.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: libvirt made `count` parameters, which live until they are freed below.
    let params = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: the parameters are libvirt's.
    let found = params.iter().filter_map(|param| unsafe { named(param) }).collect();
    // SAFETY: the list is libvirt's, and nothing of it is used any more.
    unsafe { sys::virTypedParamsFree(list, count) };
    Ok(found)
}

/// Gives a domain that is paused at its start a secret, which AMD's firmware decrypts.
pub fn set_launch_secret(domain: &Domain, header: &CString, secret: &CString) -> Result<(), Error> {
    let mut list: sys::virTypedParameterPtr = std::ptr::null_mut();
    let (mut count, mut room): (c_int, c_int) = (0, 0);
    let mut done = 0;
    for (name, value) in [
        (sys::VIR_DOMAIN_LAUNCH_SECURITY_SEV_SECRET_HEADER, header),
        (sys::VIR_DOMAIN_LAUNCH_SECURITY_SEV_SECRET, secret),
    ] {
        if done == 0 {
            // SAFETY: the list is libvirt's; it copies name and value, which end with a zero byte.
            done = unsafe {
                sys::virTypedParamsAddString(
                    &raw mut list,
                    &raw mut count,
                    &raw mut room,
                    name.as_ptr(),
                    value.as_ptr(),
                )
            };
        }
    }
    if done == 0 {
        // SAFETY: the domain is alive, and the list has `count` parameters.
        done = unsafe { sys::virDomainSetLaunchSecurityState(domain.as_ptr(), list, count, 0) };
    }
    // Freeing must not hide why it failed.
    let result = if done < 0 { Err(Error::last_error()) } else { Ok(()) };
    // SAFETY: the list is libvirt's, or null, and nothing of it is used any more.
    unsafe { sys::virTypedParamsFree(list, count) };
    result
}

/// # Safety
/// The parameter is one that libvirt filled in.
unsafe fn named(param: &sys::virTypedParameter) -> Option<(String, Value)> {
    // SAFETY: the parameter is libvirt's, so its name ends with a zero byte.
    let name = unsafe { CStr::from_ptr(param.field.as_ptr()) };
    // SAFETY: as above.
    let value = unsafe { value(param) }?;
    Some((name.to_string_lossy().into_owned(), value))
}

/// # Safety
/// The parameter is one that libvirt filled in.
unsafe fn value(param: &sys::virTypedParameter) -> Option<Value> {
    let kind = u32::try_from(param.type_).ok()?;
    // SAFETY: the type says which member of the union is the valid one; strings end with a zero byte.
    unsafe {
        match kind {
            sys::VIR_TYPED_PARAM_INT => u64::try_from(param.value.i).ok().map(Value::Number),
            sys::VIR_TYPED_PARAM_UINT => Some(Value::Number(param.value.ui.into())),
            sys::VIR_TYPED_PARAM_LLONG => u64::try_from(param.value.l).ok().map(Value::Number),
            sys::VIR_TYPED_PARAM_ULLONG => Some(Value::Number(param.value.ul)),
            sys::VIR_TYPED_PARAM_BOOLEAN => Some(Value::Number(u64::from(param.value.b != 0))),
            sys::VIR_TYPED_PARAM_STRING if !param.value.s.is_null() => Some(Value::Text(
                CStr::from_ptr(param.value.s).to_string_lossy().into_owned(),
            )),
            _ => None,
        }
    }
}

/// libvirt's convention: callbacks of every event travel as one type.
unsafe fn generic(callback: *const ()) -> sys::virConnectDomainEventGenericCallback {
    // SAFETY: the caller passes a function of the type that belongs to the event id it registers.
    unsafe { std::mem::transmute::<*const (), sys::virConnectDomainEventGenericCallback>(callback) }
}

unsafe fn register(
    connection: &Connect,
    id: sys::virDomainEventID,
    callback: sys::virConnectDomainEventGenericCallback,
    listener: Listener,
) -> Result<(), Error> {
    let context = Box::into_raw(Box::new(Context(listener))).cast();
    // SAFETY: see `subscribe`; on failure libvirt did not take the context.
    unsafe {
        let conn = connection.as_ptr();
        let id = c_int::try_from(id).unwrap_or(-1);
        if sys::virConnectDomainEventRegisterAny(conn, std::ptr::null_mut(), id, callback, context, Some(free)) < 0 {
            free(context);
            return Err(Error::last_error());
        }
    }
    Ok(())
}

unsafe extern "C" fn on_lifecycle(
    _conn: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    context: *mut c_void,
) -> c_int {
    // SAFETY: `context` is the one given at registration.
    unsafe { tell(context, Signal::Lifecycle(event, detail)) };
    0
}

unsafe extern "C" fn on_agent(
    _conn: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    context: *mut c_void,
) {
    let connected = u32::try_from(state) == Ok(sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED);
    // SAFETY: `context` is the one given at registration.
    unsafe { tell(context, Signal::Agent(connected)) };
}

unsafe extern "C" fn on_close(_conn: sys::virConnectPtr, _reason: c_int, context: *mut c_void) {
    // SAFETY: `context` is the one given at registration.
    unsafe { tell(context, Signal::Closed) };
}

unsafe fn tell(context: *mut c_void, signal: Signal) {
    // SAFETY: libvirt passes the pointer that `subscribe` made, and not after `free`.
    let context = unsafe { &*context.cast::<Context>() };
    (context.0)(signal);
}

unsafe extern "C" fn free(context: *mut c_void) {
    // SAFETY: libvirt calls this once, when it no longer uses the pointer that came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(context.cast::<Context>()) });
}
