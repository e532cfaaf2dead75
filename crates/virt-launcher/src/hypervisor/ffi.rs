//! The part of libvirt that the crate `virt` does not wrap: callbacks.
#![expect(unsafe_code, reason = "C callbacks; each block says why it is sound")]

use std::os::raw::{c_int, c_void};

use virt::connect::Connect;
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
