-- A revocation's reason may rise to keyCompromise, and change in no other way: that a key is in other hands is often found
-- out after its certificate was revoked for something else. The event of each step is kept, and so is the date of the first.

CREATE FUNCTION refuse_change_but_compromise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.reason = 'keyCompromise' AND (NEW.issuer_id, NEW.serial, NEW.revoked_at)
        IS NOT DISTINCT FROM (OLD.issuer_id, OLD.serial, OLD.revoked_at)
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
DROP TRIGGER append_only ON revocation;
CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON revocation
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER raised_only BEFORE UPDATE ON revocation
    FOR EACH ROW EXECUTE FUNCTION refuse_change_but_compromise();
