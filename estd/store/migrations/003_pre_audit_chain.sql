-- The audit trail's chain. Whatever statement adds events, one row here binds all of them to what was there before, so the
-- cost is one row and two small queries for a whole group of certificates.
--
-- digest = SHA-256(digests of `previous`, in that order, then SHA-256 of each event, in the order of `event_ids`); an event
-- is hashed as the JSON array that link_events builds, in UTF-8. `previous` are the newest links that were visible, so
-- writers do not wait for one another: each link is bound by whatever comes after it, from any worker and any node.
-- Which is newest in the end, the supervisor records in the signers' journals (docs/reliability.md).
-- An exception to SQL that PostgreSQL-compatible distributed engines run: a trigger with a transition table, sha256().

CREATE TABLE audit_link (
    link_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_ids bigint[] NOT NULL,
    previous bigint[] NOT NULL,
    digest bytea NOT NULL
);

CREATE FUNCTION link_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_link (event_ids, previous, digest)
    SELECT
        fresh.ids, coalesce(newest.ids, '{}'), sha256(coalesce(newest.digests, '') || fresh.digests)
    FROM (
        SELECT
            array_agg(event_id ORDER BY event_id) AS ids,
            string_agg(
                sha256(convert_to(json_build_array(
                    event_id, (extract(epoch FROM at) * 1000000)::bigint, ecosystem_id, issuer_id, kind, outcome,
                    ecosystem, code, detail, identity, address, request_id, serial, extra
                )::text, 'UTF8')), ''::bytea ORDER BY event_id
            ) AS digests
        FROM added
    ) AS fresh
    CROSS JOIN (
        SELECT array_agg(link_id ORDER BY link_id) AS ids, string_agg(digest, ''::bytea ORDER BY link_id) AS digests
        FROM (SELECT link_id, digest FROM audit_link ORDER BY link_id DESC LIMIT 16) AS last
    ) AS newest
    WHERE fresh.ids IS NOT NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER chained AFTER INSERT ON event
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION link_events();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_link
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Events from before there was a chain are bound by its first link.
INSERT INTO audit_link (event_ids, previous, digest)
SELECT array_agg(event_id ORDER BY event_id), '{}', sha256(string_agg(
    sha256(convert_to(json_build_array(
        event_id, (extract(epoch FROM at) * 1000000)::bigint, ecosystem_id, issuer_id, kind, outcome,
        ecosystem, code, detail, identity, address, request_id, serial, extra
    )::text, 'UTF8')), ''::bytea ORDER BY event_id
))
FROM event
HAVING count(*) > 0;
