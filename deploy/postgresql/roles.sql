-- Roles and database, once, as superuser: runuser -u postgres -- psql -v ON_ERROR_STOP=1 < roles.sql
-- Then give those that log in a password: \password estd_owner, and so on (stored as SCRAM, never typed into a file).
--
--   estd_owner    owns the schema; only migrations need it, at a first start and at an upgrade
--   estd          the running servers: issues and records, changes no rule, makes no issuer, removes no history
--   estd_admin    an operator's commands: apply, code, inventory, cert revoke
--   estd_auditor  reads everything and writes nothing: audit verify, a dump
--   estd_standby  a standby that follows; without one it needs no password, and cannot log in
--
-- What that buys: whoever takes a web worker over has the database URL of `estd`. With it he can ask for certificates, which
-- he could anyway, but write no ecosystem for the signers to load, no enrollment code, no revocation; and since `estd` does
-- not own the tables he cannot take away the triggers that keep the history append-only.

CREATE ROLE estd_owner LOGIN CONNECTION LIMIT 4;
CREATE ROLE estd LOGIN;
CREATE ROLE estd_admin LOGIN CONNECTION LIMIT 16;
CREATE ROLE estd_auditor LOGIN CONNECTION LIMIT 8;
CREATE ROLE estd_standby LOGIN REPLICATION CONNECTION LIMIT 4;

CREATE DATABASE estd OWNER estd_owner TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
REVOKE ALL ON DATABASE estd FROM PUBLIC;
GRANT CONNECT ON DATABASE estd TO estd, estd_admin, estd_auditor;

\connect estd
REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER SCHEMA public OWNER TO estd_owner;
GRANT USAGE ON SCHEMA public TO estd, estd_admin, estd_auditor;
-- Tables of later migrations can be read at once, and written after grants.sql was run again.
ALTER DEFAULT PRIVILEGES FOR ROLE estd_owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE estd_owner GRANT SELECT ON TABLES TO estd, estd_admin, estd_auditor;
ALTER DEFAULT PRIVILEGES FOR ROLE estd_owner GRANT EXECUTE ON FUNCTIONS TO estd, estd_admin;
ALTER ROLE estd_auditor SET default_transaction_read_only = on;
