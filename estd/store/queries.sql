-- Every statement estd sends to its database. estd.store.queries loads this file; the line "-- name:" starts a statement,
-- the comment under it says what it is for.
--
-- Exceptions to SQL that PostgreSQL-compatible distributed engines run: pg_notify and LISTEN (without them followers
-- learn of changes only by "resync"), the settings under session_settings (skipped where unknown), and rows as parameters
-- (intent_row, issued_row), where composite types are not known.

-- name: session_settings
-- Once for each connection. Every statement is prepared and asks for few rows by an index, so one plan serves all values
-- and every state of the tables: chosen by statistics instead, a plan made while a table was empty reads the whole of it
-- until the next ANALYZE. The server gives up on a statement that its client no longer waits for.
SELECT set_config(name, value, false)
FROM (
    VALUES
        ('plan_cache_mode', 'force_generic_plan'), ('enable_seqscan', 'off'), ('enable_hashjoin', 'off'),
        ('enable_mergejoin', 'off'), ('enable_bitmapscan', 'off'), ('jit', 'off'), ('statement_timeout', $1)
) AS setting (name, value)
WHERE current_setting(name, true) IS NOT NULL;

-- name: durability
-- What "durable on return" rests on.
SELECT current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync;

-- name: ping
-- Whether the listening connection still reaches the server.
SELECT 1;

-- name: reserve_intents
-- Inserts the intents that hold their request key and their code, and answers how many did. One INSERT decides both, so
-- neither is taken without the other. A code that the same request key holds by an orphan of which no certificate is known
-- is not taken again but shared. The order avoids deadlocks between batches with requests in common. (Asked for by a value, as
-- here and below: EXISTS beside other conditions may be answered by reading the whole table into a hash.)
WITH reserved AS (
    INSERT INTO intent (
        request_key, issuer_id, serial, ecosystem_id, ecosystem_version, node_id, profile, operation, identity, device,
        csr_sha256, spki_sha256, tbs_sha256, journal, code_id, created_at, held_code_id
    )
    SELECT
        asked.request_key, asked.issuer_id, asked.serial, asked.ecosystem_id, asked.ecosystem_version, asked.node_id,
        asked.profile, asked.operation, asked.identity, asked.device, asked.csr_sha256, asked.spki_sha256,
        asked.tbs_sha256, asked.journal, asked.code_id, to_timestamp(asked.created_at),
        CASE
            WHEN earlier.serial IS NULL OR (
                SELECT certificate.serial FROM certificate
                WHERE certificate.issuer_id = earlier.issuer_id AND certificate.serial = earlier.serial
            ) IS NOT NULL THEN asked.code_id
        END
    FROM unnest($1::intent_row[]) AS asked
    LEFT JOIN intent AS earlier
        ON earlier.held_code_id = asked.code_id AND earlier.request_key = asked.request_key AND earlier.closed = 'orphan'
    ORDER BY asked.code_id, asked.request_key
    ON CONFLICT DO NOTHING
    RETURNING created_at, issuer_id, ecosystem_id, serial
), unresolved AS (
    INSERT INTO unresolved_intent (created_at, issuer_id, ecosystem_id, serial)
    SELECT created_at, issuer_id, ecosystem_id, serial FROM reserved
)
SELECT count(*) FROM reserved;

-- name: find_holders
-- Why intents could not be reserved: for each, in order, what stands under its own serial, whether its request key is
-- held, and whether its code is spent, as `reserve_intents` decides it.
SELECT
    own.request_key AS own_request_key,
    own.serial IS NOT NULL AND own.closed IS NULL AND issued.serial IS NULL AS own_is_unresolved,
    holder.serial IS NOT NULL AS request_key_is_held,
    spender.serial IS NOT NULL AND (
        spender.request_key <> asked.request_key OR spender.closed IS DISTINCT FROM 'orphan' OR (
            SELECT certificate.serial FROM certificate
            WHERE certificate.issuer_id = spender.issuer_id AND certificate.serial = spender.serial
        ) IS NOT NULL
    ) AS code_is_spent
FROM unnest($1::bytea[], $2::integer[], $3::bytea[], $4::bigint[])
    WITH ORDINALITY AS asked (request_key, issuer_id, serial, code_id, position)
LEFT JOIN intent AS own ON own.issuer_id = asked.issuer_id AND own.serial = asked.serial
LEFT JOIN certificate AS issued ON issued.issuer_id = asked.issuer_id AND issued.serial = asked.serial
LEFT JOIN intent AS holder ON holder.request_key = asked.request_key AND holder.closed IS NULL
LEFT JOIN intent AS spender ON spender.held_code_id = asked.code_id
ORDER BY position;

-- name: find_issuances
-- The open intents of request keys, with their certificates, and why those were revoked.
SELECT
    intent.request_key, intent.issuer_id, intent.serial, intent.ecosystem_id, intent.ecosystem_version, intent.node_id,
    intent.profile, intent.operation, intent.identity, intent.device, intent.csr_sha256, intent.spki_sha256,
    intent.tbs_sha256, intent.journal, intent.code_id, intent.created_at,
    certificate.der, certificate.issued_at, revocation.reason
FROM intent
LEFT JOIN certificate ON certificate.issuer_id = intent.issuer_id AND certificate.serial = intent.serial
LEFT JOIN revocation ON revocation.issuer_id = intent.issuer_id AND revocation.serial = intent.serial
WHERE intent.request_key = ANY($1::bytea[]) AND intent.closed IS NULL;

-- name: record_issued
-- Stores certificates and their audit events and resolves their intents; answers how many. Takes only intents that are
-- unresolved: whoever deletes that row has the right to go on, so nothing here can conflict.
WITH resolved AS (
    DELETE FROM unresolved_intent
    USING unnest($1::issued_row[]) AS given
    WHERE unresolved_intent.issuer_id = given.issuer_id AND unresolved_intent.serial = given.serial
    RETURNING unresolved_intent.ecosystem_id, given.*
), stored AS (
    INSERT INTO certificate (issuer_id, serial, ecosystem_id, der, not_before, not_after, issued_at)
    SELECT
        issuer_id, serial, ecosystem_id, der, to_timestamp(not_before), to_timestamp(not_after), to_timestamp(issued_at)
    FROM resolved
), logged AS (
    INSERT INTO event (
        at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
    )
    SELECT
        to_timestamp(at), kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id,
        issuer_id, event_serial, extra::jsonb
    FROM resolved
)
SELECT count(*) FROM resolved;

-- name: record_issued_late
-- The same for one certificate whose intent was closed meanwhile: what was signed is recorded, whatever was thought of
-- it before; its event says that it came late. A repeat is left alone and adds no event.
WITH stored AS (
    INSERT INTO certificate (issuer_id, serial, ecosystem_id, der, not_before, not_after, issued_at)
    SELECT
        given.issuer_id, given.serial, intent.ecosystem_id, given.der, to_timestamp(given.not_before),
        to_timestamp(given.not_after), to_timestamp(given.issued_at)
    FROM unnest($1::issued_row[]) AS given
    JOIN intent ON intent.issuer_id = given.issuer_id AND intent.serial = given.serial
    ON CONFLICT (issuer_id, serial) DO NOTHING
    RETURNING issuer_id, ecosystem_id, serial
)
INSERT INTO event (
    at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
)
SELECT
    to_timestamp(given.at), given.kind, given.outcome, given.ecosystem, stored.ecosystem_id, given.code, given.detail,
    given.identity, given.address, given.request_id, stored.issuer_id, given.event_serial,
    coalesce(given.extra::jsonb, '{}') || '{"late": true}'
FROM stored
JOIN unnest($1::issued_row[]) AS given ON given.issuer_id = stored.issuer_id AND given.serial = stored.serial;

-- name: find_stored
-- What stands under serials, to tell a repeat from a contradiction: in order, whether there is an intent, and the bytes.
SELECT intent.serial IS NOT NULL AS has_intent, certificate.der
FROM unnest($1::integer[], $2::bytea[]) WITH ORDINALITY AS given (issuer_id, serial, position)
LEFT JOIN intent ON intent.issuer_id = given.issuer_id AND intent.serial = given.serial
LEFT JOIN certificate ON certificate.issuer_id = given.issuer_id AND certificate.serial = given.serial
ORDER BY position;

-- name: close_unresolved
-- Closes an intent without result as 'void' or 'orphan'. The row in unresolved_intent is what a result and a closing
-- compete for: whoever deletes it has won. A void intent gives its code back.
WITH resolved AS (
    DELETE FROM unresolved_intent WHERE issuer_id = $1 AND serial = $2 RETURNING issuer_id, serial
)
UPDATE intent
SET closed = $3::text, held_code_id = CASE WHEN $3::text = 'void' THEN NULL ELSE held_code_id END
FROM resolved
WHERE intent.issuer_id = resolved.issuer_id AND intent.serial = resolved.serial AND intent.closed IS NULL
RETURNING intent.serial;

-- name: close_issued
-- Closes an intent with a result as 'superseded'.
UPDATE intent
SET closed = 'superseded'
FROM certificate
WHERE intent.issuer_id = $1 AND intent.serial = $2 AND intent.closed IS NULL
    AND certificate.issuer_id = intent.issuer_id AND certificate.serial = intent.serial
RETURNING intent.serial;

-- name: find_open_intents
-- Intents without result from before a time, oldest first.
SELECT
    intent.request_key, intent.issuer_id, intent.serial, intent.ecosystem_id, intent.ecosystem_version, intent.node_id,
    intent.profile, intent.operation, intent.identity, intent.device, intent.csr_sha256, intent.spki_sha256,
    intent.tbs_sha256, intent.journal, intent.code_id, intent.created_at
FROM unresolved_intent
JOIN intent ON intent.issuer_id = unresolved_intent.issuer_id AND intent.serial = unresolved_intent.serial
WHERE unresolved_intent.created_at < $1
ORDER BY unresolved_intent.created_at, unresolved_intent.issuer_id, unresolved_intent.serial
LIMIT $2;

-- name: find_unintended
-- Serials without an intent: of a journal's entries there are none, unless the database was set back or is another one.
SELECT given.issuer_id, given.serial
FROM unnest($1::integer[], $2::bytea[]) WITH ORDINALITY AS given (issuer_id, serial, position)
LEFT JOIN intent ON intent.issuer_id = given.issuer_id AND intent.serial = given.serial
WHERE intent.serial IS NULL
ORDER BY position;

-- name: restore_intents
-- Intents out of a journal that hold neither their request key nor their code any more.
INSERT INTO intent (
    request_key, issuer_id, serial, ecosystem_id, ecosystem_version, node_id, profile, operation, identity, device,
    csr_sha256, spki_sha256, tbs_sha256, journal, code_id, created_at, closed
)
SELECT
    request_key, issuer_id, serial, ecosystem_id, ecosystem_version, node_id, profile, operation, identity, device,
    csr_sha256, spki_sha256, tbs_sha256, journal, code_id, to_timestamp(created_at), $2::text
FROM unnest($1::intent_row[])
ORDER BY issuer_id, serial
ON CONFLICT (issuer_id, serial) DO NOTHING;

-- name: find_newest_marks
-- How far the signers' journals had come when the newest certificates were begun.
SELECT intent.journal
FROM ecosystem
CROSS JOIN LATERAL (
    SELECT issuer_id, serial FROM certificate
    WHERE certificate.ecosystem_id = ecosystem.ecosystem_id
    ORDER BY issued_at DESC
    LIMIT $1
) AS newest
JOIN intent ON intent.issuer_id = newest.issuer_id AND intent.serial = newest.serial
UNION
SELECT intent.journal
FROM unresolved_intent
JOIN intent ON intent.issuer_id = unresolved_intent.issuer_id AND intent.serial = unresolved_intent.serial;

-- name: find_links
-- Links of the audit trail's chain.
SELECT link_id, digest FROM audit_link WHERE link_id = ANY($1::bigint[]);

-- name: find_lost_links
-- Which links reconciliations said were lost. Reads all events; asked when a database was set back and some are missing.
SELECT (extra ->> 'links_after')::bigint AS low, (extra ->> 'links_until')::bigint AS high
FROM event
WHERE kind = 'audit.reconcile' AND outcome = 'granted' AND extra ? 'links_until'
ORDER BY event_id;

-- name: find_newest_link
-- How far the audit trail has come.
SELECT link_id, digest FROM audit_link ORDER BY link_id DESC LIMIT 1;

-- name: find_certificates_by_serial
-- Certificates by issuer and serial.
SELECT
    certificate.issuer_id, certificate.serial, certificate.ecosystem_id, intent.profile, intent.device, intent.identity,
    certificate.der, certificate.not_before, certificate.not_after, certificate.issued_at, revocation.revoked_at
FROM unnest($1::integer[], $2::bytea[]) AS asked (issuer_id, serial)
JOIN certificate ON certificate.issuer_id = asked.issuer_id AND certificate.serial = asked.serial
JOIN intent ON intent.issuer_id = certificate.issuer_id AND intent.serial = certificate.serial
LEFT JOIN revocation ON revocation.issuer_id = certificate.issuer_id AND revocation.serial = certificate.serial;

-- name: find_newest_certificates
-- The newest certificates of one ecosystem, or of all.
SELECT
    newest.issuer_id, newest.serial, newest.ecosystem_id, intent.profile, intent.device, intent.identity,
    newest.der, newest.not_before, newest.not_after, newest.issued_at, revocation.revoked_at
FROM ecosystem
CROSS JOIN LATERAL (
    SELECT issuer_id, serial, ecosystem_id, der, not_before, not_after, issued_at
    FROM certificate
    WHERE certificate.ecosystem_id = ecosystem.ecosystem_id
    ORDER BY issued_at DESC
    LIMIT $2
) AS newest
JOIN intent ON intent.issuer_id = newest.issuer_id AND intent.serial = newest.serial
LEFT JOIN revocation ON revocation.issuer_id = newest.issuer_id AND revocation.serial = newest.serial
WHERE $1::integer IS NULL OR ecosystem.ecosystem_id = $1
ORDER BY newest.issued_at DESC, newest.serial DESC
LIMIT $2;

-- name: find_device_certificates
-- The newest certificates of one device, in one ecosystem or in all.
SELECT
    certificate.issuer_id, certificate.serial, certificate.ecosystem_id, intent.profile, intent.device, intent.identity,
    certificate.der, certificate.not_before, certificate.not_after, certificate.issued_at, revocation.revoked_at
FROM ecosystem
JOIN intent ON intent.ecosystem_id = ecosystem.ecosystem_id AND intent.device = $2
JOIN certificate ON certificate.issuer_id = intent.issuer_id AND certificate.serial = intent.serial
LEFT JOIN revocation ON revocation.issuer_id = certificate.issuer_id AND revocation.serial = certificate.serial
WHERE $1::integer IS NULL OR ecosystem.ecosystem_id = $1
ORDER BY certificate.issued_at DESC, certificate.serial DESC
LIMIT $3;

-- name: count_certificates
-- How many good certificates some profiles have, among the newest of their ecosystem: a fleet's are renewed long before the others
-- would be passed over, and the time this takes is bounded.
SELECT intent.profile, count(*) AS certificates
FROM (
    SELECT issuer_id, serial, not_after FROM certificate WHERE ecosystem_id = $1 ORDER BY issued_at DESC LIMIT $3
) AS newest
JOIN intent ON intent.issuer_id = newest.issuer_id AND intent.serial = newest.serial
LEFT JOIN revocation ON revocation.issuer_id = newest.issuer_id AND revocation.serial = newest.serial
WHERE intent.profile = ANY($2::text[]) AND newest.not_after >= $4 AND revocation.serial IS NULL
GROUP BY intent.profile;

-- name: record_revocation
-- Revokes once, with its audit event, and tells followers.
WITH revoked AS (
    INSERT INTO revocation (issuer_id, serial, reason, revoked_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (issuer_id, serial) DO NOTHING
    RETURNING issuer_id
), logged AS (
    INSERT INTO event (
        at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
    )
    SELECT
        $5::timestamptz, $6::text, $7::text, $8::text, $9::integer, $10::text, $11::text, $12::text, $13::text,
        $14::text, $15::integer, $16::text, $17::text::jsonb
    FROM revoked
)
SELECT pg_notify('estd', 'revocations') FROM revoked;

-- name: raise_revocation
-- Gives a serial that is revoked already a graver reason, with an audit event of its own that says so, and tells followers.
WITH raised AS (
    UPDATE revocation SET reason = $3 WHERE issuer_id = $1 AND serial = $2 AND reason <> $3
    RETURNING issuer_id
), logged AS (
    INSERT INTO event (
        at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
    )
    SELECT
        $4::timestamptz, $5::text, $6::text, $7::text, $8::integer, $9::text, $10::text, $11::text, $12::text,
        $13::text, $14::integer, $15::text, coalesce($16::text::jsonb, '{}') || '{"raised": true}'
    FROM raised
)
SELECT pg_notify('estd', 'revocations') FROM raised;

-- name: find_revocations
-- Revocations of certificates that have not expired, and of serials whose certificate is not known.
SELECT revocation.issuer_id, revocation.serial, revocation.reason, revocation.revoked_at
FROM revocation
LEFT JOIN certificate ON certificate.issuer_id = revocation.issuer_id AND certificate.serial = revocation.serial
WHERE certificate.not_after IS NULL OR certificate.not_after >= $1
ORDER BY revocation.issuer_id, revocation.revoked_at, revocation.serial;

-- name: find_compromised_keys
-- Keys of certificates that were revoked because the key is in other hands, expired ones included.
SELECT DISTINCT intent.ecosystem_id, intent.spki_sha256
FROM revocation
JOIN intent ON intent.issuer_id = revocation.issuer_id AND intent.serial = revocation.serial
WHERE revocation.reason = 'keyCompromise';

-- name: find_ecosystems
-- The newest version of every ecosystem, or of one, once for each of its issuers, oldest first.
SELECT
    ecosystem.ecosystem_id, ecosystem.node_id, ecosystem.label,
    newest.version, newest.document, newest.applied_at, newest.applied_by,
    issuer.issuer_id, issuer.name, issuer.parent_id, issuer.certificate, issuer.sealed_key, issuer.created_at
FROM ecosystem
CROSS JOIN LATERAL (
    SELECT version, document, applied_at, applied_by
    FROM ecosystem_version
    WHERE ecosystem_version.ecosystem_id = ecosystem.ecosystem_id
    ORDER BY version DESC
    LIMIT 1
) AS newest
LEFT JOIN issuer ON issuer.ecosystem_id = ecosystem.ecosystem_id
WHERE $1::text IS NULL OR ecosystem.label = $1
ORDER BY ecosystem.label, issuer.issuer_id;

-- name: lock_labels
-- Held to the end of the transaction: labels are claimed by one at a time. The number is "labl" in ASCII.
SELECT pg_advisory_xact_lock(1818321516);

-- name: find_contested_labels
-- Labels of these ecosystems that lead to another one too, and to which: those of ecosystems, and in the newest versions those of
-- profiles. An exception to SQL that PostgreSQL-compatible distributed engines run: the path into the document.
WITH claim AS (
    SELECT ecosystem.label AS ecosystem, ecosystem.label AS label FROM ecosystem
    UNION
    SELECT ecosystem.label, found.label #>> '{}'
    FROM ecosystem
    CROSS JOIN LATERAL (
        SELECT document
        FROM ecosystem_version
        WHERE ecosystem_version.ecosystem_id = ecosystem.ecosystem_id
        ORDER BY version DESC
        LIMIT 1
    ) AS newest
    CROSS JOIN LATERAL jsonb_path_query(newest.document, 'lax $.profile.*.label') AS found (label)
)
SELECT mine.label, min(other.ecosystem) AS ecosystem
FROM claim AS mine
JOIN claim AS other ON other.label = mine.label AND other.ecosystem <> mine.ecosystem
WHERE mine.ecosystem = ANY($1::text[])
GROUP BY mine.label
ORDER BY mine.label;

-- name: lock_ecosystem
-- Takes the row that makes versions of one ecosystem follow one another.
SELECT ecosystem_id FROM ecosystem WHERE label = $1 FOR UPDATE;

-- name: insert_ecosystem
-- A new ecosystem and its place in the tree.
WITH place AS (
    INSERT INTO node (kind, name) VALUES ('ecosystem', $1) RETURNING node_id
)
INSERT INTO ecosystem (node_id, label) SELECT node_id, $1 FROM place
RETURNING ecosystem_id;

-- name: insert_issuer
-- A new CA certificate; its parent is the newest issuer of that name in the same ecosystem.
INSERT INTO issuer (ecosystem_id, name, parent_id, certificate, sealed_key, created_at)
VALUES (
    $1, $2,
    (SELECT max(issuer_id) FROM issuer WHERE ecosystem_id = $1 AND name = $3::text),
    $4, $5, $6
)
RETURNING parent_id;

-- name: insert_version
-- A version of an ecosystem with its audit event; tells followers.
WITH applied AS (
    INSERT INTO ecosystem_version (ecosystem_id, version, document, applied_at, applied_by)
    VALUES ($1::integer, $2, $3::text::jsonb, $4, $5)
), logged AS (
    INSERT INTO event (
        at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
    )
    VALUES (
        $6, $7, $8, $9, coalesce($10::integer, $1::integer), $11, $12, $13, $14, $15, $16, $17, $18::text::jsonb
    )
)
SELECT pg_notify('estd', 'ecosystems');

-- name: find_nodes
-- The whole tree, parents before children.
SELECT node_id, parent_id, kind, name FROM node ORDER BY node_id;

-- name: record_codes
-- Stores codes that are not stored yet.
INSERT INTO enrollment_code (ecosystem_id, device, secret_sha256, single_use, profile, expires_at, created_at)
SELECT ecosystem_id, device, secret_sha256, single_use, profile, expires_at, created_at
FROM unnest($1::integer[], $2::text[], $3::bytea[], $4::boolean[], $5::text[], $6::timestamptz[], $7::timestamptz[])
    AS given (ecosystem_id, device, secret_sha256, single_use, profile, expires_at, created_at)
ON CONFLICT (ecosystem_id, device, secret_sha256) DO NOTHING;

-- name: find_recorded_codes
-- Codes by what identifies them, in the order asked.
SELECT
    code.code_id, code.ecosystem_id, code.device, code.secret_sha256, code.single_use, code.profile, code.expires_at,
    code.created_at, spender.created_at AS spent_at
FROM unnest($1::integer[], $2::text[], $3::bytea[])
    WITH ORDINALITY AS given (ecosystem_id, device, secret_sha256, position)
JOIN enrollment_code AS code
    ON code.ecosystem_id = given.ecosystem_id AND code.device = given.device
    AND code.secret_sha256 = given.secret_sha256
LEFT JOIN intent AS spender ON spender.held_code_id = code.code_id
ORDER BY position;

-- name: find_codes
-- All codes of a device, newest first.
SELECT
    code.code_id, code.ecosystem_id, code.device, code.secret_sha256, code.single_use, code.profile, code.expires_at,
    code.created_at, spender.created_at AS spent_at
FROM enrollment_code AS code
LEFT JOIN intent AS spender ON spender.held_code_id = code.code_id
WHERE code.ecosystem_id = $1 AND code.device = $2
ORDER BY code.code_id DESC;

-- name: list_codes
-- Codes of an ecosystem, newest first: all, or those that work at a given time.
SELECT
    code.code_id, code.ecosystem_id, code.device, code.secret_sha256, code.single_use, code.profile, code.expires_at,
    code.created_at, spender.created_at AS spent_at
FROM enrollment_code AS code
LEFT JOIN intent AS spender ON spender.held_code_id = code.code_id
WHERE
    code.ecosystem_id = $1
    AND ($3::timestamptz IS NULL OR (spender.created_at IS NULL AND (code.expires_at IS NULL OR code.expires_at > $3)))
ORDER BY code.code_id DESC
LIMIT $2;

-- name: revoke_codes
-- Ends codes, with the audit event; says whose they were. Of devices that are named all of them, so that a spent one answers no
-- retry any more; otherwise those that are not spent, which are few beside all that ever were.
WITH revoked AS (
    UPDATE enrollment_code AS code SET expires_at = $3
    WHERE
        code.ecosystem_id = $1
        AND ($2::text[] IS NULL OR code.device = ANY($2))
        AND (code.expires_at IS NULL OR code.expires_at > $3)
        AND ($2 IS NOT NULL OR (SELECT intent.held_code_id FROM intent WHERE intent.held_code_id = code.code_id) IS NULL)
    RETURNING code.device
), logged AS (
    INSERT INTO event (
        at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
    )
    SELECT
        $4::timestamptz, $5::text, $6::text, $7::text, $8::integer, $9::text, $10::text, $11::text, $12::text, $13::text,
        $14::integer, $15::text, $16::text::jsonb
    WHERE EXISTS (SELECT FROM revoked)
)
SELECT device FROM revoked ORDER BY device;

-- name: record_devices
-- Inserts or replaces inventory rows. The names of one device arrive as a JSON array, since arrays of arrays must be
-- of one length.
INSERT INTO device (ecosystem_id, device, subject, san)
SELECT ecosystem_id, device, subject, ARRAY(SELECT jsonb_array_elements_text(san::jsonb))
FROM unnest($1::integer[], $2::text[], $3::text[], $4::text[]) AS given (ecosystem_id, device, subject, san)
ORDER BY ecosystem_id, device
ON CONFLICT (ecosystem_id, device) DO UPDATE SET subject = excluded.subject, san = excluded.san;

-- name: find_device
-- One inventory row.
SELECT ecosystem_id, device, subject, san FROM device WHERE ecosystem_id = $1 AND device = $2;

-- name: list_devices
-- Inventory rows by name, those after a given one.
SELECT ecosystem_id, device, subject, san FROM device WHERE ecosystem_id = $1 AND device > $2 ORDER BY device LIMIT $3;

-- name: remove_devices
-- Takes inventory rows out, with the audit event; says which were there.
WITH removed AS (
    DELETE FROM device WHERE ecosystem_id = $1 AND device = ANY($2) RETURNING device
), logged AS (
    INSERT INTO event (
        at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
    )
    SELECT
        $3::timestamptz, $4::text, $5::text, $6::text, $7::integer, $8::text, $9::text, $10::text, $11::text, $12::text,
        $13::integer, $14::text, $15::text::jsonb
    WHERE EXISTS (SELECT FROM removed)
)
SELECT device FROM removed ORDER BY device;

-- name: record_events
-- Audit events that stand alone.
INSERT INTO event (
    at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
)
SELECT
    at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial,
    extra::jsonb
FROM unnest(
    $1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::integer[], $12::text[], $13::text[]
) AS given (
    at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
);

-- name: find_events
-- The newest audit events of all ecosystems and of none; where they are given, of one outcome, of one request.
SELECT
    at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
FROM event
WHERE ($1::text IS NULL OR outcome = $1) AND ($2::text IS NULL OR request_id = $2)
ORDER BY event_id DESC
LIMIT $3;

-- name: find_ecosystem_events
-- The newest audit events of one ecosystem; where they are given, of one outcome, of one request.
SELECT
    at, kind, outcome, ecosystem, ecosystem_id, code, detail, identity, address, request_id, issuer_id, serial, extra
FROM event
WHERE ecosystem_id = $1 AND ($2::text IS NULL OR outcome = $2) AND ($3::text IS NULL OR request_id = $3)
ORDER BY event_id DESC
LIMIT $4;

-- name: create_migration_table
-- What has been applied; made by the migrator itself.
CREATE TABLE IF NOT EXISTS schema_migration (
    number integer PRIMARY KEY,
    phase text NOT NULL CHECK (phase IN ('pre', 'post')),
    name text NOT NULL,
    sha256 bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: lock_migrations
-- Held to the end of the transaction: one migrator at a time. The number is "estd" in ASCII.
SELECT pg_advisory_xact_lock(1702065252);

-- name: has_migration_table
-- Whether anything was ever applied.
SELECT to_regclass('schema_migration') IS NOT NULL;

-- name: find_migrations
-- What has been applied.
SELECT number, phase, name, sha256 FROM schema_migration ORDER BY number;

-- name: insert_migration
-- One more has been applied.
INSERT INTO schema_migration (number, phase, name, sha256) VALUES ($1, $2, $3, $4);
