-- Rights on the tables, after each migration: runuser -u postgres -- psql -v ON_ERROR_STOP=1 -d estd < grants.sql
-- Everybody reads (the defaults in roles.sql); here is who writes what. Nobody may UPDATE or DELETE history,
-- but for a revocation's reason, which a trigger lets rise to keyCompromise and nothing else.
SET ROLE estd_owner; -- whose tables they are; the superuser needs no way in for it

-- The running servers: an issuance and its traces.
GRANT INSERT, UPDATE ON intent TO estd;
GRANT INSERT, DELETE ON unresolved_intent TO estd;
GRANT INSERT ON certificate, event, audit_link TO estd;

-- An operator's commands.
GRANT INSERT ON node, ecosystem, ecosystem_version, issuer TO estd_admin;
GRANT UPDATE (label) ON ecosystem TO estd_admin; -- to lock the row while a new version is written
GRANT INSERT ON enrollment_code, revocation, event, audit_link TO estd_admin;
GRANT UPDATE (reason) ON revocation TO estd_admin; -- to raise it to keyCompromise
GRANT UPDATE (expires_at) ON enrollment_code TO estd_admin; -- to revoke codes
GRANT INSERT, UPDATE, DELETE ON device TO estd_admin;

-- audit reconcile, after the database was set back: writes what the journal proves.
GRANT INSERT, UPDATE ON intent TO estd_admin;
GRANT INSERT, DELETE ON unresolved_intent TO estd_admin;
GRANT INSERT ON certificate TO estd_admin;
