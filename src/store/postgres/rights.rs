//! What the role of the address may do in the schema, and what a daemon needs.

use std::collections::BTreeMap;

use super::connection::{Connector, Link};
use super::rows::get;
use super::sql::{Db, parameters};
use crate::store::model::StoreError;

/// What the statements of a daemon do with each table. Rows that go with the row that they refer to are deleted with the
/// rights of the tables' owner (`ri_PerformCheck` in PostgreSQL 15, src/backend/utils/adt/ri_triggers.c), and a row is
/// locked with `UPDATE` (postgresql.org/docs/15/sql-select, "The Locking Clause").
const TABLES: [(&str, &[&str]); 15] = [
    ("attempts", &["SELECT", "INSERT"]),
    ("clock", &["SELECT", "UPDATE"]),
    ("configured_watches", &["SELECT", "INSERT", "DELETE"]),
    ("deleted_events", &["SELECT", "UPDATE"]),
    ("deliveries", &["SELECT", "INSERT", "UPDATE"]),
    ("dirty", &["SELECT", "INSERT", "DELETE"]),
    ("discovered_runs", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("discoveries", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("events", &["SELECT", "INSERT", "DELETE"]),
    ("leases", &["SELECT", "INSERT", "UPDATE"]),
    ("past_durations", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("payloads", &["SELECT", "INSERT", "DELETE"]),
    ("schema", &["SELECT"]),
    ("status_changes", &["SELECT", "INSERT", "DELETE"]),
    ("watches", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
];

/// What they do with sequences: `nextval` needs `USAGE`, and `setval` needs `UPDATE`
/// (postgresql.org/docs/15/functions-sequence). The numbers of the other tables are given as default values of identity
/// columns, which needs no right.
const SEQUENCES: [(&str, &[&str]); 2] = [
    ("events_seq_seq", &["USAGE", "UPDATE"]),
    ("payloads_id_seq", &["USAGE"]),
];

/// What the role lacks, in the order of the names: the role and the schema as statements name them, what it is a right
/// on (`None` for the schema), whether that is a sequence, and the right. Tables that are not there yet are left out.
/// Anyone may read these catalogs, and call these functions (postgresql.org/docs/15/functions-info, "Access Privilege
/// Inquiry Functions"); each right is looked for on its own, because of several in one call any one counts.
const MISSING: &str = "WITH place AS (
        SELECT oid, quote_ident(nspname) AS name FROM pg_catalog.pg_namespace WHERE nspname = $1
    ), wanted AS (
        SELECT * FROM unnest($2, $3, $4) WITH ORDINALITY AS w (name, is_sequence, needed, number)
    )
    SELECT quote_ident(current_user), place.name, NULL::text, false, 'USAGE'::text, 0::bigint AS number
    FROM place WHERE NOT has_schema_privilege(place.oid, 'USAGE')
    UNION ALL
    SELECT quote_ident(current_user), place.name, w.name, w.is_sequence, w.needed, w.number
    FROM place JOIN pg_catalog.pg_class c ON c.relnamespace = place.oid JOIN wanted w ON w.name = c.relname
    WHERE NOT CASE WHEN w.is_sequence THEN has_sequence_privilege(c.oid, w.needed)
        ELSE has_table_privilege(c.oid, w.needed) END
    ORDER BY number";

/// What a role lacks that a daemon needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRights {
    /// The role, as statements name it.
    pub role: String,
    /// What it lacks, for people: `INSERT and DELETE on events`.
    pub what: String,
    /// The statements that grant it.
    pub grant: String,
}

/// Looks for rights that the role lacks. Tables that are not there yet do not count. Works in any transaction.
///
/// # Errors
/// When the server reports one.
pub(super) async fn missing_rights(db: &Db<'_>) -> Result<Option<MissingRights>, StoreError> {
    let schema = db.schema().name();
    let (mut names, mut sequences, mut rights) = (Vec::new(), Vec::new(), Vec::new());
    for (needed, is_sequence) in [(TABLES.as_slice(), false), (&SEQUENCES, true)] {
        for (name, of_it) in needed {
            for right in *of_it {
                names.push(*name);
                sequences.push(is_sequence);
                rights.push(*right);
            }
        }
    }
    let rows = db
        .rows(MISSING, parameters![schema, names, sequences, rights])
        .await?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let (role, schema): (String, String) = (get(first, 0)?, get(first, 1)?);
    let mut lacked = Lacked::default();
    for row in &rows {
        let right = get::<&str>(row, 4)?;
        match get::<Option<&str>>(row, 2)? {
            None => lacked.schema = true,
            Some(name) => {
                let kind = (get(row, 3)?, name.to_owned());
                lacked
                    .by_name
                    .entry(kind)
                    .or_default()
                    .push(right.to_owned());
            }
        }
    }
    Ok(Some(lacked.describe(role, &schema)))
}

/// Rights that are lacked.
#[derive(Debug, Default)]
struct Lacked {
    /// Whether it is `USAGE` on the schema.
    schema: bool,
    /// The rights on each table, and, with `true`, each sequence.
    by_name: BTreeMap<(bool, String), Vec<String>>,
}

impl Lacked {
    /// Describes them, with a statement for all tables or sequences that the same rights are lacked on.
    fn describe(self, role: String, schema: &str) -> MissingRights {
        let (mut what, mut grant) = (Vec::new(), Vec::new());
        if self.schema {
            what.push("USAGE on the schema".to_owned());
            grant.push(format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
        }
        let mut names: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for ((is_sequence, name), rights) in self.by_name {
            names.entry((is_sequence, rights)).or_default().push(name);
        }
        for ((is_sequence, rights), names) in names {
            let kind = if is_sequence { "SEQUENCE " } else { "" };
            let places: Vec<_> = names
                .iter()
                .map(|name| format!("{schema}.{name}"))
                .collect();
            what.push(format!("{} on {}", listed(&rights), listed(&names)));
            grant.push(format!(
                "GRANT {} ON {kind}{} TO {role}",
                rights.join(", "),
                places.join(", ")
            ));
        }
        MissingRights {
            role,
            what: what.join("; "),
            grant: grant.join("; "),
        }
    }
}

/// Words as in a sentence.
fn listed(words: &[String]) -> String {
    match words {
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        words => words.concat(),
    }
}

/// Checks that the role has what a daemon needs, before it works with the tables: one that lacks a right could lead, or
/// stand by, and then fail at whatever needs that right.
///
/// # Errors
/// [`StoreError::Unusable`] with what to grant when it lacks a right.
pub(super) async fn check_rights(link: &Link, connector: &Connector) -> Result<(), StoreError> {
    let db = Db::new(link, &connector.schema, false);
    let begin = connector.begin("READ COMMITTED READ ONLY");
    let missing = db.read_within(&begin, missing_rights(&db)).await?;
    match missing {
        None => Ok(()),
        Some(MissingRights { role, what, grant }) => Err(StoreError::Unusable(format!(
            "the role {role} lacks rights in the schema {}: {what}; let the owner of the tables run `{grant}`",
            connector.schema.name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::moved::all_tables;
    use super::*;

    /// The files whose statements a daemon does not make, or makes as the owner of the tables.
    const OF_OWNERS: [&str; 4] = ["copy.rs", "migrations.rs", "moved.rs", "rights.rs"];

    /// The rights that statements with these texts need, by what they are on.
    fn rights_of(text: &str) -> BTreeSet<(String, &'static str)> {
        let mut found = BTreeSet::new();
        let mut begins = text.match_indices("runwatch.").peekable();
        while let Some((at, word)) = begins.next() {
            let rest = &text[at + word.len()..];
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_'));
            let name = &rest[..end.unwrap_or(rest.len())];
            let before = text[..at].trim_end();
            let verbs = [
                ("INSERT INTO", "INSERT"),
                ("DELETE FROM", "DELETE"),
                ("UPDATE", "UPDATE"),
                ("nextval('", "USAGE"),
                ("FROM", "SELECT"),
                ("JOIN", "SELECT"),
            ];
            if let Some((_, right)) = verbs.iter().find(|(verb, _)| before.ends_with(verb)) {
                found.insert((name.to_owned(), *right));
                // Their conditions read the row.
                if ["DELETE", "UPDATE"].contains(right) {
                    found.insert((name.to_owned(), "SELECT"));
                }
            }
            // What follows up to the next statement may lock the row, or change it after all.
            let part = &text[at..begins.peek().map_or(text.len(), |(next, _)| *next)];
            let part = part
                .split_once(';')
                .map_or(part, |(statement, _)| statement);
            if ["FOR UPDATE", "FOR KEY SHARE", "DO UPDATE"]
                .iter()
                .any(|words| part.contains(words))
            {
                found.insert((name.to_owned(), "UPDATE"));
            }
        }
        found
    }

    #[test]
    fn the_rights_are_those_that_the_statements_need() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/postgres");
        let mut used = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !OF_OWNERS.contains(&name.as_str()) {
                used.extend(rights_of(&std::fs::read_to_string(&path).unwrap()));
            }
        }
        // `read_version` is in a file that is left out, and the name of the sequence whose number the keeper sets is a
        // parameter.
        for (name, right) in [("schema", "SELECT"), ("events_seq_seq", "UPDATE")] {
            used.insert((name.to_owned(), right));
        }
        let needed: BTreeSet<_> = TABLES
            .iter()
            .chain(&SEQUENCES)
            .flat_map(|(name, rights)| rights.iter().map(|right| ((*name).to_owned(), *right)))
            .collect();
        let of = |set: &BTreeSet<(String, &'static str)>| {
            let named = |(name, right): &(String, &str)| format!("{right} on {name}");
            set.iter().map(named).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(of(&needed), of(&used));
    }

    #[test]
    fn each_table_has_rights() {
        let known: BTreeSet<_> = TABLES.iter().map(|(name, _)| *name).collect();
        let single = ["clock", "deleted_events", "schema"];
        let all: BTreeSet<_> = all_tables().chain(single).collect();
        assert_eq!(known, all);
    }

    #[test]
    fn what_is_lacked_is_named_with_the_statements_that_grant_it() {
        let mut lacked = Lacked {
            schema: true,
            ..Lacked::default()
        };
        for (is_sequence, name, rights) in [
            (false, "events", &["INSERT", "DELETE"][..]),
            (false, "payloads", &["INSERT", "DELETE"]),
            (false, "clock", &["UPDATE"]),
            (true, "events_seq_seq", &["USAGE", "UPDATE"]),
        ] {
            let rights = rights.iter().map(|right| (*right).to_owned()).collect();
            lacked
                .by_name
                .insert((is_sequence, name.to_owned()), rights);
        }
        let missing = lacked.describe("\"Worker\"".to_owned(), "team_a");
        assert_eq!(
            missing.what,
            "USAGE on the schema; INSERT and DELETE on events and payloads; UPDATE on clock; USAGE and UPDATE on \
             events_seq_seq"
        );
        assert_eq!(
            missing.grant,
            "GRANT USAGE ON SCHEMA team_a TO \"Worker\"; GRANT INSERT, DELETE ON team_a.events, team_a.payloads TO \
             \"Worker\"; GRANT UPDATE ON team_a.clock TO \"Worker\"; GRANT USAGE, UPDATE ON SEQUENCE \
             team_a.events_seq_seq TO \"Worker\""
        );
    }
}
