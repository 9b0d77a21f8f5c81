CREATE SCHEMA romancy;

CREATE FUNCTION romancy.json_contains(document text, part jsonb) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE STRICT COST 10000
    AS $$
begin
    return document::jsonb @> part;
exception
    when data_exception or program_limit_exceeded then return false;
end $$;

CREATE TABLE romancy.attempt (
    run_id uuid NOT NULL,
    number integer NOT NULL,
    attempt integer NOT NULL,
    failed_at timestamp with time zone NOT NULL,
    next_at timestamp with time zone NOT NULL,
    failure text NOT NULL
);

CREATE TABLE romancy.burial_check (
    is_only boolean DEFAULT true NOT NULL,
    checked_at timestamp with time zone NOT NULL,
    CONSTRAINT burial_check_is_only_check CHECK (is_only)
);

CREATE TABLE romancy.channel (
    name text NOT NULL,
    mode text NOT NULL
);

CREATE TABLE romancy.dead_letter (
    id bigint NOT NULL,
    run_id uuid NOT NULL,
    namespace text NOT NULL,
    at timestamp with time zone NOT NULL,
    died_at timestamp with time zone DEFAULT now() NOT NULL,
    attempts integer NOT NULL,
    failure text NOT NULL,
    payload text NOT NULL
);

ALTER TABLE romancy.dead_letter ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME romancy.dead_letter_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE romancy.demand (
    channel text NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    run_id uuid NOT NULL,
    number integer NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');

CREATE TABLE romancy.due (
    id uuid NOT NULL,
    queue text NOT NULL,
    workflow text NOT NULL,
    priority smallint NOT NULL,
    phase text NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    message text DEFAULT ''::text NOT NULL,
    worker_id bigint,
    claim integer DEFAULT 0 NOT NULL,
    wake_at timestamp with time zone,
    inbox_version integer DEFAULT 0 NOT NULL,
    started_at timestamp with time zone,
    python text,
    form text,
    lost_count integer DEFAULT 0 NOT NULL,
    lost_noted integer DEFAULT 0 NOT NULL,
    blocked_builds text[] DEFAULT '{}'::text[] NOT NULL,
    is_resource boolean DEFAULT false NOT NULL,
    is_compensated boolean DEFAULT false NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');

CREATE TABLE romancy.emitted (
    run_id uuid NOT NULL,
    "position" bigint NOT NULL,
    namespace text NOT NULL,
    at timestamp with time zone NOT NULL,
    payload text NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');

ALTER TABLE romancy.emitted ALTER COLUMN "position" ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME romancy.emitted_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE romancy.emitter (
    run_id uuid NOT NULL,
    due_at timestamp with time zone NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    claim integer DEFAULT 0 NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    failing_since timestamp with time zone,
    failure text DEFAULT ''::text NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');

CREATE TABLE romancy.event (
    id bigint NOT NULL,
    source text NOT NULL,
    event_id text NOT NULL,
    type text NOT NULL,
    target uuid,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    payload text NOT NULL,
    attributes jsonb NOT NULL
)
WITH (autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.02');

ALTER TABLE romancy.event ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME romancy.event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE romancy.fence (
    worker_id bigint NOT NULL,
    slot smallint NOT NULL
);

CREATE TABLE romancy.history (
    run_id uuid NOT NULL,
    "position" integer NOT NULL,
    kind text NOT NULL,
    at timestamp with time zone NOT NULL,
    number integer NOT NULL,
    inbox integer,
    name text NOT NULL,
    digest text NOT NULL,
    payload text NOT NULL
)
WITH (autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.02');

CREATE TABLE romancy.inbox (
    run_id uuid NOT NULL,
    number integer NOT NULL,
    kind text NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    source text NOT NULL,
    payload text NOT NULL,
    is_had boolean DEFAULT false NOT NULL,
    event_id bigint
);

CREATE TABLE romancy.member (
    group_name text NOT NULL,
    run_id uuid NOT NULL
);

CREATE TABLE romancy.migration (
    number integer NOT NULL,
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE romancy.mirror (
    run_id uuid NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    mirrored integer DEFAULT 0 NOT NULL,
    mirror_at timestamp with time zone,
    is_final boolean DEFAULT false NOT NULL
);

CREATE TABLE romancy.outbox (
    run_id uuid NOT NULL,
    number integer NOT NULL,
    kind text NOT NULL,
    payload text NOT NULL,
    worker_id bigint,
    at timestamp with time zone DEFAULT now() NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');

CREATE TABLE romancy.pending (
    channel text NOT NULL,
    event_id bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='500', autovacuum_vacuum_cost_delay='0');

CREATE TABLE romancy.purge_check (
    is_only boolean DEFAULT true NOT NULL,
    checked_at timestamp with time zone NOT NULL,
    CONSTRAINT purge_check_is_only_check CHECK (is_only)
);

CREATE TABLE romancy.run (
    id uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    workflow text NOT NULL,
    priority smallint NOT NULL,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    input text NOT NULL,
    timeout_seconds double precision,
    is_resource boolean DEFAULT false NOT NULL,
    resource_gone_at timestamp with time zone,
    wish_suspend boolean DEFAULT false NOT NULL,
    wish_cancel boolean DEFAULT false NOT NULL,
    deletion_policy text DEFAULT 'Cancel'::text NOT NULL,
    ttl_seconds integer,
    begun_by bigint,
    begun_number integer,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    form text,
    python text,
    started_at timestamp with time zone,
    phase text,
    reason text,
    message text,
    output text,
    failure text,
    finished_at timestamp with time zone,
    resource_due_at timestamp with time zone,
    parent_id uuid,
    parent_number integer,
    parent_close text,
    numbers text DEFAULT '{}'::text NOT NULL,
    recurred_into uuid,
    first_input text,
    history_from integer DEFAULT 0 NOT NULL,
    outbox_from integer DEFAULT 0 NOT NULL,
    claim integer,
    is_compensated boolean
)
WITH (fillfactor='90');

CREATE TABLE romancy.worker (
    id bigint NOT NULL,
    name text NOT NULL,
    boot_id uuid NOT NULL,
    pod_uid text NOT NULL,
    namespace text NOT NULL,
    workflows text[] NOT NULL,
    forms text[] NOT NULL,
    build_id text NOT NULL,
    python text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    is_draining boolean DEFAULT false NOT NULL
)
WITH (fillfactor='50');

CREATE VIEW romancy.run_shown AS
 SELECT run.id,
    run.namespace,
    run.name,
    run.workflow,
    run.input,
    COALESCE(due.form, run.form) AS form,
    run.priority,
    COALESCE(due.phase, run.phase) AS phase,
    COALESCE(due.reason, run.reason) AS reason,
    COALESCE(due.message, run.message) AS message,
    (run.labels)::text AS labels,
    run.created_at,
    COALESCE(due.started_at, run.started_at) AS started_at,
    run.finished_at,
    due.wake_at,
    worker.name AS worker,
    COALESCE(due.python, run.python) AS python,
    run.timeout_seconds,
    run.output,
    run.failure,
    run.is_resource,
    run.wish_suspend,
    run.wish_cancel,
    run.deletion_policy,
    run.ttl_seconds,
    run.numbers,
    run.recurred_into,
    run.first_input
   FROM ((romancy.run
     LEFT JOIN romancy.due ON ((due.id = run.id)))
     LEFT JOIN romancy.worker ON ((worker.id = due.worker_id)));

CREATE VIEW romancy.scale AS
 WITH RECURSIVE used(priority, queue) AS (
        ( SELECT due.priority,
            due.queue
           FROM romancy.due
          WHERE (due.wake_at IS NOT NULL)
          ORDER BY due.priority, due.queue
         LIMIT 1)
        UNION ALL
         SELECT following.priority,
            following.queue
           FROM used,
            LATERAL ( SELECT due.priority,
                    due.queue
                   FROM romancy.due
                  WHERE ((due.wake_at IS NOT NULL) AND (ROW(due.priority, due.queue) > ROW(used.priority, used.queue)))
                  ORDER BY due.priority, due.queue
                 LIMIT 1) following
        ), coming AS (
         SELECT count(*) FILTER (WHERE (found.wake_at <= now())) AS due,
            count(*) FILTER (WHERE (found.wake_at > now())) AS soon
           FROM used,
            LATERAL ( SELECT due.wake_at
                   FROM romancy.due
                  WHERE ((due.priority = used.priority) AND (due.queue = used.queue) AND (due.wake_at <= (now() + '00:00:30'::interval)) AND (due.reason <> 'WorkflowNotRegistered'::text))
                  ORDER BY due.wake_at
                 LIMIT 10000) found
        ), held AS (
         SELECT count(*) AS held
           FROM ( SELECT
                   FROM romancy.due
                  WHERE (due.worker_id IS NOT NULL)
                  ORDER BY due.worker_id
                 LIMIT 10000) found
        )
 SELECT ((coming.due + coming.soon) + held.held) AS runs,
    coming.due,
    coming.soon,
    held.held
   FROM coming,
    held;

CREATE TABLE romancy.shape (
    type text NOT NULL,
    attributes text NOT NULL
);

CREATE TABLE romancy.starter (
    namespace text NOT NULL,
    workflow text NOT NULL,
    type text NOT NULL,
    wanted text NOT NULL,
    form text NOT NULL
);

CREATE TABLE romancy.subscription (
    run_id uuid NOT NULL,
    number integer NOT NULL,
    key uuid NOT NULL
);

CREATE TABLE romancy.value (
    run_id uuid NOT NULL,
    name text NOT NULL,
    number integer NOT NULL,
    payload text NOT NULL
);

ALTER TABLE romancy.worker ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME romancy.worker_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE ONLY romancy.attempt
    ADD CONSTRAINT attempt_pkey PRIMARY KEY (run_id, number, attempt);

ALTER TABLE ONLY romancy.burial_check
    ADD CONSTRAINT burial_check_pkey PRIMARY KEY (is_only);

ALTER TABLE ONLY romancy.channel
    ADD CONSTRAINT channel_pkey PRIMARY KEY (name);

ALTER TABLE ONLY romancy.dead_letter
    ADD CONSTRAINT dead_letter_pkey PRIMARY KEY (id);

ALTER TABLE ONLY romancy.demand
    ADD CONSTRAINT demand_pkey PRIMARY KEY (run_id, number);

ALTER TABLE ONLY romancy.due
    ADD CONSTRAINT due_pkey PRIMARY KEY (id);

ALTER TABLE ONLY romancy.emitted
    ADD CONSTRAINT emitted_pkey PRIMARY KEY (run_id, "position");

ALTER TABLE ONLY romancy.emitter
    ADD CONSTRAINT emitter_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY romancy.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (id);

ALTER TABLE ONLY romancy.event
    ADD CONSTRAINT event_source_event_id_key UNIQUE (source, event_id);

ALTER TABLE ONLY romancy.fence
    ADD CONSTRAINT fence_pkey PRIMARY KEY (worker_id, slot);

ALTER TABLE ONLY romancy.history
    ADD CONSTRAINT history_pkey PRIMARY KEY (run_id, "position");

ALTER TABLE ONLY romancy.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (run_id, number);

ALTER TABLE ONLY romancy.inbox
    ADD CONSTRAINT inbox_run_id_source_key UNIQUE (run_id, source);

ALTER TABLE ONLY romancy.member
    ADD CONSTRAINT member_pkey PRIMARY KEY (group_name, run_id);

ALTER TABLE ONLY romancy.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (number);

ALTER TABLE ONLY romancy.mirror
    ADD CONSTRAINT mirror_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY romancy.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (run_id, number);

ALTER TABLE ONLY romancy.pending
    ADD CONSTRAINT pending_pkey PRIMARY KEY (channel, event_id);

ALTER TABLE ONLY romancy.purge_check
    ADD CONSTRAINT purge_check_pkey PRIMARY KEY (is_only);

ALTER TABLE ONLY romancy.run
    ADD CONSTRAINT run_pkey PRIMARY KEY (id);

ALTER TABLE ONLY romancy.shape
    ADD CONSTRAINT shape_pkey PRIMARY KEY (type, attributes);

ALTER TABLE ONLY romancy.starter
    ADD CONSTRAINT starter_pkey PRIMARY KEY (namespace, workflow);

ALTER TABLE ONLY romancy.subscription
    ADD CONSTRAINT subscription_pkey PRIMARY KEY (run_id, number);

ALTER TABLE ONLY romancy.value
    ADD CONSTRAINT value_pkey PRIMARY KEY (run_id, name);

ALTER TABLE ONLY romancy.worker
    ADD CONSTRAINT worker_pkey PRIMARY KEY (id);

CREATE INDEX dead_letter_listed ON romancy.dead_letter USING btree (namespace, id);

CREATE INDEX demand_oldest ON romancy.demand USING btree (channel, at, run_id, number);

CREATE INDEX due_blocked ON romancy.due USING btree (queue) WHERE (phase = 'Blocked'::text);

CREATE INDEX due_claim ON romancy.due USING btree (priority, queue, wake_at) WHERE (wake_at IS NOT NULL);

CREATE INDEX due_held ON romancy.due USING btree (worker_id) WHERE (worker_id IS NOT NULL);

CREATE INDEX due_stranded ON romancy.due USING btree (queue) WHERE (reason = 'WorkflowNotRegistered'::text);

CREATE INDEX emitter_due ON romancy.emitter USING btree (due_at) WHERE (attempts = 0);

CREATE INDEX emitter_failing ON romancy.emitter USING btree (due_at) WHERE (attempts > 0);

CREATE INDEX event_attributes ON romancy.event USING gin (attributes jsonb_path_ops) WITH (fastupdate=off);

CREATE INDEX event_type ON romancy.event USING btree (type, at);

CREATE INDEX inbox_event ON romancy.inbox USING btree (event_id) WHERE (event_id IS NOT NULL);

CREATE INDEX member_run ON romancy.member USING btree (run_id);

CREATE INDEX mirror_owed ON romancy.mirror USING btree (is_final DESC, mirror_at) WHERE (mirror_at IS NOT NULL);

CREATE INDEX outbox_left ON romancy.outbox USING btree (at);

CREATE INDEX pending_event ON romancy.pending USING btree (event_id);

CREATE INDEX run_done ON romancy.run USING btree (phase, created_at DESC, id DESC) WHERE (phase IS NOT NULL);

CREATE INDEX run_finished ON romancy.run USING btree (phase, finished_at) WHERE (phase IS NOT NULL);

CREATE INDEX run_labels ON romancy.run USING gin (labels jsonb_path_ops) WHERE (labels <> '{}'::jsonb);

CREATE INDEX run_listed ON romancy.run USING btree (created_at DESC, id DESC);

CREATE INDEX run_listed_by_namespace ON romancy.run USING btree (namespace, created_at DESC, id DESC);

CREATE INDEX run_name ON romancy.run USING btree (namespace, name, created_at DESC);

CREATE INDEX run_parent ON romancy.run USING btree (parent_id) WHERE (parent_id IS NOT NULL);

CREATE INDEX run_recurred ON romancy.run USING btree (recurred_into) WHERE (recurred_into IS NOT NULL);

CREATE INDEX run_resource ON romancy.run USING btree (namespace, id) WHERE (is_resource AND (resource_gone_at IS NULL));

CREATE INDEX run_resource_due ON romancy.run USING btree (resource_due_at) WHERE ((resource_due_at IS NOT NULL) AND (resource_gone_at IS NULL));

CREATE INDEX starter_type ON romancy.starter USING btree (type);

CREATE INDEX subscription_key ON romancy.subscription USING btree (key, run_id);

CREATE INDEX worker_pod ON romancy.worker USING btree (pod_uid) WHERE (pod_uid <> ''::text);
