-- What a row of a batch looks like when it arrives. One array of rows costs both ends less than one array for each column;
-- a later version that needs other columns makes another type, so that both can be used during an upgrade.

CREATE TYPE intent_row AS (
    request_key bytea,
    issuer_id integer,
    serial bytea,
    ecosystem_id integer,
    ecosystem_version integer,
    node_id integer,
    profile text,
    operation text,
    identity text,
    device text,
    csr_sha256 bytea,
    spki_sha256 bytea,
    tbs_sha256 bytea,
    journal text,
    code_id bigint,
    created_at float8
);

CREATE TYPE issued_row AS (
    issuer_id integer,
    serial bytea,
    der bytea,
    not_before float8,
    not_after float8,
    issued_at float8,
    at float8,
    kind text,
    outcome text,
    ecosystem text,
    code text,
    detail text,
    identity text,
    address text,
    request_id text,
    event_serial text,
    extra text
);
