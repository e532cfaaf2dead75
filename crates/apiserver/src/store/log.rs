//! The log on disk.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::state::State;
use super::writer::Meta;
use super::{Key, OpenError, Stored};

const FORMAT: i64 = 1;

/// An open database.
pub(super) struct Log {
    connection: Connection,
}

impl Log {
    /// Opens the database and replays it into `state`.
    pub(super) fn open(path: &Path, state: &mut State) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Database {
            path: path.to_owned(),
            source,
        };
        let connection = Connection::open(path).map_err(failed)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=-512;
                 PRAGMA journal_size_limit=4194304; PRAGMA temp_store=MEMORY;
                 BEGIN IMMEDIATE;
                 CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS log (revision INTEGER PRIMARY KEY, resource TEXT NOT NULL, path TEXT NOT NULL,
                     deleted INTEGER NOT NULL, body BLOB NOT NULL);
                 CREATE INDEX IF NOT EXISTS log_key ON log (resource, path, revision);
                 INSERT OR IGNORE INTO meta VALUES ('format', 1), ('compacted', 0), ('revision', 0);
                 COMMIT;",
            )
            .map_err(failed)?;
        let log = Self { connection };
        let found = log.meta("format").map_err(failed)?;
        if found != FORMAT {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found,
                expected: FORMAT,
            });
        }
        log.load(state).map_err(failed)?;
        Ok(log)
    }

    fn meta(&self, name: &str) -> rusqlite::Result<i64> {
        self.connection
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
    }

    fn load(&self, state: &mut State) -> rusqlite::Result<()> {
        state.set_floor(number(self.meta("revision")?), number(self.meta("compacted")?));
        let mut statement = self
            .connection
            .prepare("SELECT revision, resource, path, deleted, body FROM log ORDER BY revision")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let body: Box<[u8]> = row.get_ref(4)?.as_blob()?.into();
            let resource = state.intern(row.get_ref(1)?.as_str()?);
            let meta = Meta::read(&body);
            let object = Arc::new(Stored {
                key: Key {
                    resource,
                    path: row.get_ref(2)?.as_str()?.into(),
                },
                revision: number(row.get(0)?),
                body,
                uid: meta.uid,
                owners: meta.owners,
            });
            state.apply(if row.get::<_, bool>(3)? {
                Err(object)
            } else {
                Ok(object)
            });
        }
        Ok(())
    }

    /// Makes a group of changes durable. `Err` entries are deletes.
    pub(super) fn append(&mut self, changes: &[Result<Arc<Stored>, Arc<Stored>>]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO log (revision, resource, path, deleted, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for change in changes {
                let (object, deleted) = match change {
                    Ok(object) => (object, false),
                    Err(object) => (object, true),
                };
                insert.execute(params![
                    signed(object.revision),
                    &*object.key.resource,
                    &*object.key.path,
                    deleted,
                    &*object.body
                ])?;
            }
        }
        transaction.commit()
    }

    /// Forgets what was superseded at or before `floor`.
    pub(super) fn compact(&mut self, floor: u64, revision: u64) -> rusqlite::Result<()> {
        let floor = signed(floor);
        let transaction = self.connection.transaction()?;
        // Superseded versions first: the newest row of a deleted object says that the older ones are void.
        transaction.execute(
            "DELETE FROM log WHERE revision < ?1 AND EXISTS (SELECT 1 FROM log AS newer WHERE newer.resource = log.resource
                 AND newer.path = log.path AND newer.revision > log.revision AND newer.revision <= ?1)",
            [floor],
        )?;
        transaction.execute("DELETE FROM log WHERE revision <= ?1 AND deleted", [floor])?;
        transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'compacted'", [floor])?;
        transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'revision'", [signed(revision)])?;
        transaction.commit()
    }
}

/// SQLite's integers are signed; revisions never leave their positive half.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
