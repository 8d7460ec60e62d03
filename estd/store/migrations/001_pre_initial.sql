-- The first schema.
--
-- Column order puts fixed widths first (no padding). The three tables every enrollment writes (intent, certificate,
-- event) have no foreign keys: a foreign key locks the same issuer row for every certificate, from every worker.
-- Exceptions to SQL that PostgreSQL-compatible distributed engines run: the append-only triggers, and the statistics
-- and storage settings; nothing but speed and a safety net hangs on them.

-- The tree of places. Administration is delegated by node.
CREATE TABLE node (
    node_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent_id integer REFERENCES node,
    kind text NOT NULL CHECK (kind IN ('ecosystem', 'organization', 'site')),
    name text NOT NULL CHECK (name <> ''),
    CHECK ((kind = 'ecosystem') = (parent_id IS NULL))
);
CREATE UNIQUE INDEX node_name ON node (parent_id, name) WHERE parent_id IS NOT NULL;

CREATE TABLE ecosystem (
    ecosystem_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node_id integer NOT NULL UNIQUE REFERENCES node,
    -- One spelling only, in characters that have one case and no look-alikes.
    label text NOT NULL UNIQUE CHECK (label ~ '^[a-z0-9][a-z0-9._~-]{0,62}$')
);

CREATE TABLE ecosystem_version (
    ecosystem_id integer NOT NULL REFERENCES ecosystem,
    version integer NOT NULL CHECK (version > 0),
    document jsonb NOT NULL,
    applied_at timestamptz NOT NULL,
    applied_by text NOT NULL,
    PRIMARY KEY (ecosystem_id, version)
);

CREATE TABLE issuer (
    issuer_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ecosystem_id integer NOT NULL REFERENCES ecosystem,
    parent_id integer REFERENCES issuer,
    created_at timestamptz NOT NULL,
    name text NOT NULL CHECK (name <> ''),
    certificate bytea NOT NULL,
    sealed_key bytea
);
-- The same certificate is not imported twice under one name: that makes applying a version repeatable.
CREATE UNIQUE INDEX issuer_certificate ON issuer (ecosystem_id, name, sha256(certificate));

CREATE TABLE intent (
    created_at timestamptz NOT NULL,
    code_id bigint,
    -- Set in the one row that marks a single-use code as spent; never in two rows at once. Rows in which it is set
    -- outlive any clean-up for as long as the code itself exists.
    held_code_id bigint,
    issuer_id integer NOT NULL,
    ecosystem_id integer NOT NULL,
    ecosystem_version integer NOT NULL,
    node_id integer NOT NULL,
    serial bytea NOT NULL,
    request_key bytea NOT NULL,
    csr_sha256 bytea NOT NULL,
    spki_sha256 bytea NOT NULL,
    tbs_sha256 bytea NOT NULL,
    profile text NOT NULL,
    operation text NOT NULL,
    identity text NOT NULL,
    device text NOT NULL,
    journal text NOT NULL,
    closed text CHECK (closed IN ('void', 'orphan', 'superseded')),
    PRIMARY KEY (issuer_id, serial)
);
CREATE UNIQUE INDEX intent_open_request ON intent (request_key) WHERE closed IS NULL;
CREATE UNIQUE INDEX intent_held_code ON intent (held_code_id) WHERE held_code_id IS NOT NULL;
CREATE INDEX intent_device ON intent (ecosystem_id, device);

-- One row for each intent that is neither issued nor closed. Finding those among millions of intents takes no clock
-- and no index on the large table this way; the table is nearly empty at all times.
CREATE TABLE unresolved_intent (
    created_at timestamptz NOT NULL,
    issuer_id integer NOT NULL,
    ecosystem_id integer NOT NULL,
    serial bytea NOT NULL,
    PRIMARY KEY (issuer_id, serial)
);

-- The serial begins with a coarse time, so (issuer_id, serial) can later be the range-partition key as well: new rows
-- go to the right edge of the index, and expired certificates leave by dropping a partition.
CREATE TABLE certificate (
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    issued_at timestamptz NOT NULL,
    issuer_id integer NOT NULL,
    ecosystem_id integer NOT NULL,
    serial bytea NOT NULL,
    der bytea NOT NULL,
    PRIMARY KEY (issuer_id, serial)
);
CREATE INDEX certificate_newest ON certificate (ecosystem_id, issued_at);
-- A certificate does not compress; do not try.
ALTER TABLE certificate ALTER COLUMN der SET STORAGE EXTERNAL;

CREATE TABLE revocation (
    revoked_at timestamptz NOT NULL,
    issuer_id integer NOT NULL REFERENCES issuer,
    serial bytea NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (issuer_id, serial)
);

CREATE TABLE enrollment_code (
    code_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    expires_at timestamptz,
    created_at timestamptz NOT NULL,
    ecosystem_id integer NOT NULL REFERENCES ecosystem,
    single_use boolean NOT NULL,
    device text NOT NULL,
    secret_sha256 bytea NOT NULL,
    profile text
);
-- Finds a device's codes, and makes storing them repeatable: no two secrets are alike.
CREATE UNIQUE INDEX enrollment_code_secret ON enrollment_code (ecosystem_id, device, secret_sha256);

CREATE TABLE device (
    ecosystem_id integer NOT NULL REFERENCES ecosystem,
    device text NOT NULL,
    subject text,
    san text[] NOT NULL,
    PRIMARY KEY (ecosystem_id, device)
);

CREATE TABLE event (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    ecosystem_id integer,
    issuer_id integer,
    kind text NOT NULL,
    outcome text NOT NULL,
    ecosystem text,
    code text,
    detail text NOT NULL,
    identity text NOT NULL,
    address text NOT NULL,
    request_id text NOT NULL,
    serial text,
    extra jsonb
);
CREATE INDEX event_newest ON event (ecosystem_id, event_id);

-- History is added to and never rewritten, not even by a mistake of ours.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON certificate
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ecosystem_version
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON issuer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON revocation
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
