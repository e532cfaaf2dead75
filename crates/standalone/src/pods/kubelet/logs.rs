//! Container logs: files that containers write themselves, read line by line, and kept small.
//!
//! No process stands between a container and its log, so a line's time is what the line says: our processes begin theirs
//! with an RFC 3339 time, and `virt-tail` writes the CRI format. A line without a time counts as old as the one before it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use ferrovirt_apiserver::LogOptions;
use futures::StreamExt;
use http::{HeaderValue, Response, header};
use inotify::{Inotify, WatchDescriptor, WatchMask};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;

use super::super::pod::Context;
use super::super::state::PodRecord;
use super::Failure;

/// A log that has grown beyond this is put aside, over the one put aside before.
const LIMIT: u64 = 10 << 20;
/// A growing log is looked at this often, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Bytes sent to a client at once.
const CHUNK: usize = 64 << 10;

/// Answers `pods/log`.
pub(super) fn answer(
    context: &Arc<Context>,
    pod: &Pod,
    container: &str,
    options: &LogOptions,
) -> Result<Response<Body>, Failure> {
    let uid = pod.uid().unwrap_or_default();
    let directory = context
        .logs(&pod.namespace().unwrap_or_default(), &pod.name_any(), &uid)
        .path()
        .join(container);
    let Some(path) = instance(&directory, options.previous) else {
        let what = if options.previous { "previous terminated " } else { "" };
        return Err(Failure::bad_request(format!(
            "{what}container \"{container}\" in pod \"{}\" is waiting to start: it has no log yet",
            pod.name_any()
        )));
    };
    let cut = Cut {
        since: options.since_seconds.map(|seconds| {
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX / 2));
            Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN)
        }),
        timestamps: options.timestamps,
    };
    let (sender, receiver) = mpsc::channel(4);
    let stream = Stream {
        cut,
        path,
        tail: options.tail_lines,
        left: options.limit_bytes.unwrap_or(u64::MAX),
        follow: options.follow.then(|| Follow {
            pod_directory: context.directory(&uid),
            container: container.to_owned(),
        }),
        sender,
    };
    tokio::spawn(async move {
        if let Err(error) = stream.run().await {
            tracing::debug!(%error, "a log could not be read to its end");
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, io::Error>));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The log of the newest instance of a container, or of the one before.
fn instance(directory: &Path, previous: bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let number = |name: &str| name.strip_suffix(".log")?.parse::<u32>().ok();
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| number(entry.file_name().to_str()?))
        .collect();
    numbers.sort_unstable();
    let chosen = if previous {
        numbers.iter().rev().nth(1)
    } else {
        numbers.last()
    };
    chosen.map(|number| directory.join(format!("{number}.log")))
}

/// Where a log is put aside.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// A line of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: Option<Timestamp>,
    content: &'a [u8],
    /// The next line goes on where this one ends.
    partial: bool,
}

fn parse(line: &[u8]) -> Line<'_> {
    let plain = Line {
        time: None,
        content: line,
        partial: false,
    };
    let Some(space) = line.iter().take(40).position(|byte| *byte == b' ') else {
        return plain;
    };
    let time = std::str::from_utf8(&line[..space])
        .ok()
        .and_then(|word| word.parse::<Timestamp>().ok());
    let Some(time) = time else { return plain };
    let rest = &line[space + 1..];
    for (prefix, partial) in [
        (&b"stdout F "[..], false),
        (b"stderr F ", false),
        (b"stdout P ", true),
        (b"stderr P ", true),
    ] {
        if let Some(content) = rest.strip_prefix(prefix) {
            return Line {
                time: Some(time),
                content,
                partial,
            };
        }
    }
    Line {
        time: Some(time),
        content: line,
        partial: false,
    }
}

/// Which lines are wanted, and how.
#[derive(Clone, Copy, Debug)]
struct Cut {
    since: Option<Timestamp>,
    timestamps: bool,
}

/// What the lines so far say about the next one.
#[derive(Debug, Default)]
struct Position {
    last_time: Option<Timestamp>,
    inside_line: bool,
}

impl Cut {
    /// Appends complete lines of a file to `out` as the client wants them.
    fn render(self, text: &[u8], position: &mut Position, out: &mut Vec<u8>) {
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line = parse(line.strip_suffix(b"\n").unwrap_or(line));
            position.last_time = line.time.or(position.last_time);
            let old = self
                .since
                .is_some_and(|since| position.last_time.is_some_and(|time| time < since));
            if !old {
                if self.timestamps && !position.inside_line {
                    let time = position.last_time.unwrap_or(Timestamp::UNIX_EPOCH);
                    out.extend_from_slice(format!("{time:.9} ").as_bytes());
                }
                out.extend_from_slice(line.content);
                if !line.partial {
                    out.push(b'\n');
                }
            }
            position.inside_line = line.partial;
        }
    }
}

/// The last `count` lines of a text; parts of a line count as one.
fn last_lines(text: &[u8], count: u64) -> &[u8] {
    let mut left = count;
    let mut start = text.len();
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (index, line) in lines.iter().enumerate().rev() {
        // A line begins where the one before it is complete.
        let begins = index == 0 || !parse(lines[index - 1].strip_suffix(b"\n").unwrap_or(lines[index - 1])).partial;
        if left == 0 {
            break;
        }
        start -= line.len();
        if begins {
            left -= 1;
        }
    }
    &text[start..]
}

struct Follow {
    pod_directory: PathBuf,
    container: String,
}

impl Follow {
    /// Nothing more will be written.
    fn is_over(&self) -> bool {
        let record = PodRecord::load(&self.pod_directory).ok().flatten();
        let container = record
            .as_ref()
            .and_then(|record| record.containers.get(&self.container));
        container.is_none_or(|container| container.ended.is_some())
    }
}

/// One client that reads one log.
struct Stream {
    cut: Cut,
    path: PathBuf,
    tail: Option<u64>,
    left: u64,
    follow: Option<Follow>,
    sender: mpsc::Sender<Bytes>,
}

impl Stream {
    async fn run(mut self) -> io::Result<()> {
        let mut inotify = None;
        if let Some(follow) = &self.follow {
            let watcher = Inotify::init()?;
            watcher.watches().add(&self.path, WatchMask::MODIFY)?;
            let ends = WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::DELETE_SELF;
            // The pod may be gone already.
            let _ = watcher.watches().add(&follow.pod_directory, ends);
            inotify = Some(watcher.into_event_stream([0; 4096])?);
        }
        let mut position = Position::default();
        let mut file = File::open(&self.path)?;
        let mut text = fs::read(aside(&self.path)).unwrap_or_default();
        let mut offset = file.read_to_end(&mut text)? as u64;
        let mut rest = Vec::new();
        // A line that is being written now is sent when it is complete.
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        rest.extend_from_slice(&text[complete..]);
        text.truncate(complete);
        let wanted = self.tail.map_or(text.as_slice(), |tail| last_lines(&text, tail));
        let mut out = Vec::new();
        self.cut.render(wanted, &mut position, &mut out);
        drop(text);
        loop {
            if !self.send(&out).await {
                return Ok(());
            }
            let over = self.follow.as_ref().is_none_or(Follow::is_over);
            out.clear();
            if file.metadata()?.len() < offset {
                offset = file.seek(SeekFrom::Start(0))?;
            }
            let more = (&mut file).take(CHUNK as u64).read_to_end(&mut rest)?;
            offset += more as u64;
            let complete = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.cut.render(&rest[..complete], &mut position, &mut out);
            rest.drain(..complete);
            if more > 0 {
                continue;
            }
            match &mut inotify {
                Some(events) if !over => tokio::select! {
                    _ = events.next() => {}
                    () = self.sender.closed() => return Ok(()),
                },
                _ => {
                    self.cut.render(&rest, &mut position, &mut out);
                    self.send(&out).await;
                    return Ok(());
                }
            }
        }
    }

    /// Returns whether the client wants more.
    async fn send(&mut self, text: &[u8]) -> bool {
        for chunk in text.chunks(CHUNK) {
            let wanted = usize::try_from(self.left).map_or(chunk.len(), |left| left.min(chunk.len()));
            self.left -= wanted as u64;
            let sent = self.sender.send(Bytes::copy_from_slice(&chunk[..wanted])).await;
            if sent.is_err() || self.left == 0 {
                return false;
            }
        }
        true
    }
}

/// Keeps logs small. Woken by the logs themselves: a log that nobody writes to costs nothing.
#[derive(Clone, Debug)]
pub(in super::super) struct LogLimits(mpsc::UnboundedSender<PathBuf>);

impl LogLimits {
    /// Starts the task that looks after logs, until `stop`.
    pub(in super::super) fn start(stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            if let Err(error) = keep_small(receiver, stop).await {
                tracing::warn!(%error, "the size of container logs is not bounded any more");
            }
        });
        Self(sender)
    }

    /// From now on this log is kept small.
    pub(in super::super) fn add(&self, path: PathBuf) {
        // Without the task logs grow; it has said so.
        let _ = self.0.send(path);
    }
}

async fn keep_small(mut added: mpsc::UnboundedReceiver<PathBuf>, stop: CancellationToken) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    let mut events = inotify.into_event_stream([0; 4096])?;
    let mut watched: HashMap<WatchDescriptor, PathBuf> = HashMap::new();
    let mut later: DelayQueue<PathBuf> = DelayQueue::new();
    loop {
        let look_at = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            path = added.recv() => match path {
                Some(path) => path,
                None => return Ok(()),
            },
            Some(expired) = later.next() => expired.into_inner(),
            event = events.next() => {
                if let Some(Ok(event)) = event
                    && let Some(path) = watched.remove(&event.wd)
                {
                    later.insert(path, LOOK_EVERY);
                }
                continue;
            }
        };
        // Gone with its pod: nothing to look after.
        let Ok(metadata) = fs::metadata(&look_at) else { continue };
        if metadata.len() > LIMIT {
            put_aside(&look_at)?;
        }
        if let Ok(descriptor) = watches.add(&look_at, WatchMask::MODIFY | WatchMask::ONESHOT) {
            watched.insert(descriptor, look_at);
        }
    }
}

/// The container goes on writing to the same file, so its content is copied, and the file emptied.
fn put_aside(path: &Path) -> io::Result<()> {
    fs::copy(path, aside(path))?;
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:00.5Z stdout F one\n\
        2026-01-01T00:00:01Z stdout P tw\n\
        2026-01-01T00:00:02Z stdout F o\n\
        \tno time\n\
        2026-01-01T00:00:03.000001Z  INFO launcher: three\n";

    fn rendered(text: &[u8], cut: Cut) -> String {
        let mut out = Vec::new();
        cut.render(text, &mut Position::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_lose_the_format_but_nothing_else() {
        let plain = rendered(
            LOG,
            Cut {
                since: None,
                timestamps: false,
            },
        );
        assert_eq!(
            plain,
            "one\ntwo\n\tno time\n2026-01-01T00:00:03.000001Z  INFO launcher: three\n"
        );
    }

    #[test]
    fn times_are_those_of_the_lines() {
        let timed = rendered(
            LOG,
            Cut {
                since: None,
                timestamps: true,
            },
        );
        let times: Vec<&str> = timed.lines().map(|line| &line[..20]).collect();
        assert_eq!(
            times,
            [
                "2026-01-01T00:00:00.",
                "2026-01-01T00:00:01.",
                "2026-01-01T00:00:02.",
                "2026-01-01T00:00:03."
            ]
        );
        assert!(timed.contains("01.000000000Z two\n"), "{timed}");
    }

    #[test]
    fn since_drops_older_lines() {
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        let recent = rendered(
            LOG,
            Cut {
                since,
                timestamps: false,
            },
        );
        assert_eq!(
            recent,
            "o\n\tno time\n2026-01-01T00:00:03.000001Z  INFO launcher: three\n"
        );
    }

    #[test]
    fn the_last_lines_are_whole() {
        let all = Cut {
            since: None,
            timestamps: false,
        };
        assert_eq!(rendered(last_lines(LOG, 0), all), "");
        assert_eq!(rendered(last_lines(LOG, 2), all).lines().count(), 2);
        assert_eq!(rendered(last_lines(LOG, 3), all).lines().next(), Some("two"));
        assert_eq!(rendered(last_lines(LOG, 99), all).lines().count(), 4);
    }

    #[test]
    fn the_newest_instance_is_read() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(instance(directory.path(), false), None);
        for name in ["0.log", "10.log", "9.log", "10.log.1"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(instance(directory.path(), false), Some(directory.path().join("10.log")));
        assert_eq!(instance(directory.path(), true), Some(directory.path().join("9.log")));
    }

    #[test]
    fn a_large_log_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, "old\n").unwrap();
        put_aside(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::read(directory.path().join("0.log.1")).unwrap(), b"old\n");
    }
}
