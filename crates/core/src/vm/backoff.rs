//! Crash loops: starts that fail before the guest runs are repeated ever more slowly.

use ferrovirt_api::v1::VirtualMachineStartFailure;
use jiff::{SignedDuration, Timestamp};

use super::RunStrategy;
use crate::conditions::wire_time;
use crate::vmi::VmiFacts;

const INTERVAL_SECONDS: i64 = 10;
const MAX_SECONDS: i64 = 300;

/// The pause after `count` failed starts in a row: `10 s · count²`, up to half more by `jitter` (0 to 1), at most 300 s.
#[must_use]
pub fn delay(count: i32, jitter: f64) -> SignedDuration {
    let count = i64::from(count.clamp(0, 1000));
    let seconds = INTERVAL_SECONDS * count * count;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "at most 10 million"
    )]
    let extra = (seconds as f64 / 2.0 * jitter.clamp(0.0, 1.0)) as i64;
    SignedDuration::from_secs((seconds + extra).min(MAX_SECONDS))
}

/// `status.startFailure` of a VM with this VMI. Each VMI is counted once, and only if it ended by itself without ever
/// having run; a VMI that runs, and a strategy that does not repeat starts, clear it.
#[must_use]
pub fn start_failure(
    current: Option<&VirtualMachineStartFailure>,
    strategy: RunStrategy,
    vmi: Option<&VmiFacts>,
    now: Timestamp,
    jitter: f64,
) -> Option<VirtualMachineStartFailure> {
    if !strategy.backs_off() {
        return None;
    }
    let Some(vmi) = vmi else { return current.cloned() };
    if vmi.was_running {
        return None;
    }
    let counted = current.and_then(|c| c.last_failed_vmiuid.as_deref()) == Some(vmi.uid.as_str());
    if !vmi.phase.is_final() || vmi.deleting || counted {
        return current.cloned();
    }
    let count = current
        .and_then(|c| c.consecutive_fail_count)
        .unwrap_or(0)
        .max(0)
        .saturating_add(1);
    let retry = now.checked_add(delay(count, jitter)).unwrap_or(now);
    Some(VirtualMachineStartFailure {
        consecutive_fail_count: Some(count),
        last_failed_vmiuid: Some(vmi.uid.clone()),
        retry_after_timestamp: Some(wire_time(retry)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vmi::Phase;

    proptest! {
        #[test]
        fn delays_grow_and_are_bounded(count in 1..10_000i32, jitter in 0.0..1.0f64) {
            let least = (10 * i64::from(count).pow(2)).min(300);
            let most = (15 * i64::from(count).pow(2)).min(300);
            let seconds = delay(count, jitter).as_secs();
            prop_assert!((least..=most).contains(&seconds), "{seconds}");
            prop_assert!(delay(count + 1, 0.0) >= delay(count, 0.0));
        }

        #[test]
        fn each_vmi_counts_once(jitter in 0.0..1.0f64, repeats in 1..5usize, vmis in 1..8usize) {
            let mut failure = None;
            for i in 0..vmis {
                let vmi = VmiFacts { uid: i.to_string(), phase: Phase::Failed, deleting: false, was_running: false };
                for _ in 0..repeats {
                    let now = Timestamp::from_second(i64::try_from(i).unwrap()).unwrap();
                    failure = start_failure(failure.as_ref(), RunStrategy::Always, Some(&vmi), now, jitter);
                }
            }
            let failure = failure.unwrap();
            prop_assert_eq!(failure.consecutive_fail_count, Some(i32::try_from(vmis).unwrap()));
            let last = (vmis - 1).to_string();
            prop_assert_eq!(failure.last_failed_vmiuid.as_deref(), Some(last.as_str()));
        }
    }

    #[test]
    fn documented_values() {
        for (count, least, most) in [(1, 10, 15), (2, 40, 60), (3, 90, 135), (4, 160, 240), (6, 300, 300)] {
            assert_eq!(delay(count, 0.0).as_secs(), least);
            assert_eq!(delay(count, 1.0).as_secs(), most);
        }
    }

    #[test]
    fn cleared_by_running_and_by_strategy() {
        let now = Timestamp::UNIX_EPOCH;
        let failed = VmiFacts {
            uid: "u".into(),
            phase: Phase::Failed,
            deleting: false,
            was_running: false,
        };
        let failure = start_failure(None, RunStrategy::Always, Some(&failed), now, 0.0);
        assert!(failure.is_some());
        let next = VmiFacts {
            uid: "v".into(),
            phase: Phase::Scheduling,
            ..failed.clone()
        };
        assert_eq!(
            start_failure(failure.as_ref(), RunStrategy::Always, Some(&next), now, 0.0),
            failure
        );
        assert_eq!(
            start_failure(failure.as_ref(), RunStrategy::Always, None, now, 0.0),
            failure
        );
        let ran = VmiFacts {
            was_running: true,
            ..next
        };
        assert_eq!(
            start_failure(failure.as_ref(), RunStrategy::Always, Some(&ran), now, 0.0),
            None
        );
        assert_eq!(
            start_failure(failure.as_ref(), RunStrategy::Manual, None, now, 0.0),
            None
        );
        let stopped = VmiFacts {
            deleting: true,
            ..failed
        };
        assert_eq!(start_failure(None, RunStrategy::Always, Some(&stopped), now, 0.0), None);
    }
}
