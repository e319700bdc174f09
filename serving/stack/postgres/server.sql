-- Create or update the user :server with :password. The user owns the database of the same name and all its objects.
SELECT format('CREATE ROLE %I', :'server')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'server') \gexec
ALTER ROLE :"server" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
SELECT format('CREATE DATABASE %I', :'server')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'server') \gexec
ALTER DATABASE :"server" OWNER TO :"server";
REVOKE ALL ON DATABASE :"server" FROM PUBLIC;

\connect :"server"
ALTER SCHEMA public OWNER TO :"server";
-- In older stacks, the superuser owned the objects. A column's sequence changes its owner with the table.
SELECT format('ALTER %s public.%I OWNER TO %I', kinds.word, relname, :'server')
    FROM pg_class
    JOIN (VALUES ('r', 'TABLE'), ('p', 'TABLE'), ('v', 'VIEW'), ('m', 'MATERIALIZED VIEW'), ('S', 'SEQUENCE'))
        AS kinds (kind, word) ON kinds.kind = relkind::text
    WHERE relnamespace = 'public'::regnamespace AND relowner <> :'server'::regrole
        AND NOT EXISTS (
            SELECT FROM pg_depend
            WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype IN ('a', 'i', 'e')
        ) \gexec
SELECT format('ALTER TYPE public.%I OWNER TO %I', typname, :'server')
    FROM pg_type
    WHERE typnamespace = 'public'::regnamespace AND typtype IN ('d', 'e') AND typowner <> :'server'::regrole \gexec
