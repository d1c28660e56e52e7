"""What the ledger's tables are: one SQL script a version, applied in order, the file's `user_version` says how many.

The `total_*` tables repeat sums of the detail, so that a question about a workflow does not read a million runs. They
are moved in the same transaction as the detail, and keep what the detail forgets. The `day_*` tables have what it
forgot, by the UTC day on which a run was opened. Energies are microjoules, times Unix seconds.
"""

from proxy.energy.sums import WASTE

APPLICATION_ID = 0x4A4F554C  # marks the file as a ledger of ours

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        uid TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        run TEXT NOT NULL,
        segment INTEGER NOT NULL,
        workflow TEXT NOT NULL,
        opened REAL NOT NULL,
        ended REAL NOT NULL,
        state TEXT NOT NULL,
        UNIQUE (run, tenant, segment)
    );
    CREATE INDEX runs_by_time ON runs (opened);
    CREATE INDEX runs_by_tenant ON runs (tenant, opened);
    CREATE INDEX runs_by_workflow ON runs (workflow, opened);
    CREATE INDEX runs_unfinished ON runs (state) WHERE state <> 'final';

    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        run_uid TEXT NOT NULL REFERENCES runs (uid),
        step TEXT NOT NULL,
        node TEXT,
        parents TEXT NOT NULL,
        identified_by TEXT NOT NULL,
        model TEXT NOT NULL,
        path TEXT NOT NULL,
        stream INTEGER NOT NULL,
        received REAL NOT NULL,
        ended REAL,
        code INTEGER,
        outcome TEXT,
        prompt_tokens INTEGER,
        cached_tokens INTEGER,
        output_tokens INTEGER,
        usage TEXT NOT NULL,
        settled INTEGER NOT NULL
    );
    CREATE INDEX requests_by_run ON requests (run_uid, received);
    CREATE INDEX requests_unsettled ON requests (settled) WHERE settled = 0;

    CREATE TABLE attempts (
        request_id TEXT NOT NULL REFERENCES requests (id),
        n INTEGER NOT NULL,
        engine TEXT NOT NULL,
        queued REAL NOT NULL,
        dispatched REAL,
        first REAL,
        ended REAL,
        code INTEGER,
        outcome TEXT,
        PRIMARY KEY (request_id, n)
    ) WITHOUT ROWID;

    CREATE TABLE energy (
        request_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        device TEXT NOT NULL,
        component TEXT NOT NULL,
        phase TEXT NOT NULL,
        quality TEXT NOT NULL,
        uj INTEGER NOT NULL,
        low_uj INTEGER NOT NULL,
        high_uj INTEGER NOT NULL,
        PRIMARY KEY (request_id, attempt, device, phase, quality),
        FOREIGN KEY (request_id, attempt) REFERENCES attempts (request_id, n)
    ) WITHOUT ROWID;

    CREATE TABLE windows (
        device TEXT NOT NULL,
        second INTEGER NOT NULL,
        quality TEXT NOT NULL,
        workflow_uj INTEGER NOT NULL,
        idle_uj INTEGER NOT NULL,
        foreign_uj INTEGER NOT NULL,
        gap_uj INTEGER NOT NULL,
        PRIMARY KEY (device, second, quality)
    ) WITHOUT ROWID;

    CREATE TABLE devices (
        device TEXT PRIMARY KEY,
        component TEXT NOT NULL,
        model TEXT NOT NULL,
        quality TEXT NOT NULL,
        counter_uj INTEGER NOT NULL,
        raw_uj INTEGER NOT NULL,
        t REAL NOT NULL
    ) WITHOUT ROWID;

    CREATE TABLE total_runs (
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        state TEXT NOT NULL,
        runs INTEGER NOT NULL,
        duration_us INTEGER NOT NULL,
        PRIMARY KEY (tenant, workflow, state)
    ) WITHOUT ROWID;

    CREATE TABLE total_requests (
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        outcome TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        PRIMARY KEY (tenant, workflow, step, outcome)
    ) WITHOUT ROWID;

    CREATE TABLE total_energy (
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        engine TEXT NOT NULL,
        component TEXT NOT NULL,
        quality TEXT NOT NULL,
        outcome TEXT NOT NULL,
        records INTEGER NOT NULL,
        uj INTEGER NOT NULL,
        low_uj INTEGER NOT NULL,
        high_uj INTEGER NOT NULL,
        PRIMARY KEY (tenant, workflow, step, engine, component, quality, outcome)
    ) WITHOUT ROWID;

    CREATE TABLE total_windows (
        device TEXT NOT NULL,
        quality TEXT NOT NULL,
        workflow_uj INTEGER NOT NULL,
        idle_uj INTEGER NOT NULL,
        foreign_uj INTEGER NOT NULL,
        gap_uj INTEGER NOT NULL,
        PRIMARY KEY (device, quality)
    ) WITHOUT ROWID;
    """,
    # Requests lie in the order of their ids, which begin with the time, so that a new one goes to the end. Whether a
    # request is settled only its gateway knows, while it runs. Both phases of a device's joules stand in one row.
    """
    CREATE TABLE requests_2 (
        id TEXT PRIMARY KEY,
        run_uid TEXT NOT NULL REFERENCES runs (uid),
        step TEXT NOT NULL,
        node TEXT,
        parents TEXT NOT NULL,
        identified_by TEXT NOT NULL,
        path TEXT NOT NULL,
        received REAL NOT NULL,
        model TEXT NOT NULL,
        stream INTEGER NOT NULL,
        ended REAL,
        code INTEGER,
        outcome TEXT,
        prompt_tokens INTEGER,
        cached_tokens INTEGER,
        output_tokens INTEGER,
        usage TEXT NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO requests_2
    SELECT id, run_uid, step, node, parents, identified_by, path, received, model, stream, ended, code, outcome,
        prompt_tokens, cached_tokens, output_tokens, usage
    FROM requests ORDER BY id;
    DROP TABLE requests;
    ALTER TABLE requests_2 RENAME TO requests;
    CREATE INDEX requests_by_run ON requests (run_uid);

    CREATE TABLE energy_2 (
        request_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        device TEXT NOT NULL,
        quality TEXT NOT NULL,
        component TEXT NOT NULL,
        prefill_uj INTEGER NOT NULL,
        decode_uj INTEGER NOT NULL,
        low_uj INTEGER NOT NULL,
        high_uj INTEGER NOT NULL,
        PRIMARY KEY (request_id, attempt, device, quality),
        FOREIGN KEY (request_id, attempt) REFERENCES attempts (request_id, n)
    ) WITHOUT ROWID;
    INSERT INTO energy_2
    SELECT request_id, attempt, device, quality, component,
        sum(iif(phase = 'prefill', uj, 0)), sum(iif(phase = 'decode', uj, 0)), sum(low_uj), sum(high_uj)
    FROM energy GROUP BY request_id, attempt, device, quality;
    DROP TABLE energy;
    ALTER TABLE energy_2 RENAME TO energy;

    DELETE FROM total_energy;
    INSERT INTO total_energy
    SELECT tenant, workflow, step, engine, component, quality, coalesce(attempts.outcome, ''),
        count(*), sum(prefill_uj + decode_uj), sum(low_uj), sum(high_uj)
    FROM energy CROSS JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
        CROSS JOIN requests ON id = energy.request_id CROSS JOIN runs ON uid = run_uid
    GROUP BY tenant, workflow, step, engine, component, quality, coalesce(attempts.outcome, '');
    """,
    # What has no rows of its own any more, or never had: the detail and these sum to the totals.
    """
    CREATE TABLE day_runs (
        day TEXT NOT NULL,
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        runs INTEGER NOT NULL,
        duration_us INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, workflow)
    ) WITHOUT ROWID;

    CREATE TABLE day_requests (
        day TEXT NOT NULL,
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        outcome TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, workflow, step, outcome)
    ) WITHOUT ROWID;

    CREATE TABLE day_energy (
        day TEXT NOT NULL,
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        engine TEXT NOT NULL,
        component TEXT NOT NULL,
        quality TEXT NOT NULL,
        outcome TEXT NOT NULL,
        records INTEGER NOT NULL,
        uj INTEGER NOT NULL,
        low_uj INTEGER NOT NULL,
        high_uj INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, workflow, step, engine, component, quality, outcome)
    ) WITHOUT ROWID;

    CREATE TABLE day_windows (
        day TEXT NOT NULL,
        device TEXT NOT NULL,
        quality TEXT NOT NULL,
        workflow_uj INTEGER NOT NULL,
        idle_uj INTEGER NOT NULL,
        foreign_uj INTEGER NOT NULL,
        gap_uj INTEGER NOT NULL,
        PRIMARY KEY (day, device, quality)
    ) WITHOUT ROWID;

    CREATE TABLE dropped (
        day TEXT PRIMARY KEY,
        requests INTEGER NOT NULL,
        uj INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    # Energy is summed by why it was in vain, requests by what the prefix cache saved them. What a tenant spent in an
    # hour is kept for its budgets. Whom an earlier gateway left without an end is said to be so.
    f"""
    UPDATE attempts SET outcome = 'orphaned' WHERE outcome IS NULL;
    UPDATE requests SET outcome = 'orphaned' WHERE outcome IS NULL;
    ALTER TABLE requests ADD COLUMN saved_uj INTEGER;
    ALTER TABLE requests ADD COLUMN saved_quality TEXT;

    CREATE TABLE day_requests_4 (
        day TEXT NOT NULL,
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        outcome TEXT NOT NULL,
        saved_quality TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        saved_uj INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, workflow, step, outcome, saved_quality)
    ) WITHOUT ROWID;
    INSERT INTO day_requests_4
    SELECT day, tenant, workflow, step, outcome, '', requests, prompt_tokens, cached_tokens, output_tokens, 0
    FROM day_requests;
    DROP TABLE day_requests;
    ALTER TABLE day_requests_4 RENAME TO day_requests;

    DROP TABLE total_requests;
    CREATE TABLE total_requests (
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        outcome TEXT NOT NULL,
        saved_quality TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        saved_uj INTEGER NOT NULL,
        PRIMARY KEY (tenant, workflow, step, outcome, saved_quality)
    ) WITHOUT ROWID;
    INSERT INTO total_requests
    SELECT tenant, workflow, step, outcome, '', sum(n), sum(prompt), sum(cached), sum(output), 0
    FROM (
        SELECT tenant, workflow, step, outcome, 1 AS n, coalesce(prompt_tokens, 0) AS prompt,
            coalesce(cached_tokens, 0) AS cached, coalesce(output_tokens, 0) AS output
        FROM requests CROSS JOIN runs ON uid = run_uid
        UNION ALL
        SELECT tenant, workflow, step, outcome, requests, prompt_tokens, cached_tokens, output_tokens FROM day_requests
    )
    GROUP BY tenant, workflow, step, outcome;

    CREATE TABLE day_energy_4 (
        day TEXT NOT NULL,
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        engine TEXT NOT NULL,
        component TEXT NOT NULL,
        quality TEXT NOT NULL,
        waste TEXT NOT NULL,
        records INTEGER NOT NULL,
        uj INTEGER NOT NULL,
        low_uj INTEGER NOT NULL,
        high_uj INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, workflow, step, engine, component, quality, waste)
    ) WITHOUT ROWID;
    INSERT INTO day_energy_4
    SELECT day, tenant, workflow, step, engine, component, quality,
        CASE outcome WHEN 'cancelled' THEN 'cancelled' WHEN 'failed' THEN 'failed' WHEN 'error' THEN 'failed'
            WHEN 'refused' THEN 'stopped' ELSE '' END AS waste,
        sum(records), sum(uj), sum(low_uj), sum(high_uj)
    FROM day_energy GROUP BY day, tenant, workflow, step, engine, component, quality, waste;
    DROP TABLE day_energy;
    ALTER TABLE day_energy_4 RENAME TO day_energy;

    DROP TABLE total_energy;
    CREATE TABLE total_energy (
        tenant TEXT NOT NULL,
        workflow TEXT NOT NULL,
        step TEXT NOT NULL,
        engine TEXT NOT NULL,
        component TEXT NOT NULL,
        quality TEXT NOT NULL,
        waste TEXT NOT NULL,
        records INTEGER NOT NULL,
        uj INTEGER NOT NULL,
        low_uj INTEGER NOT NULL,
        high_uj INTEGER NOT NULL,
        PRIMARY KEY (tenant, workflow, step, engine, component, quality, waste)
    ) WITHOUT ROWID;
    INSERT INTO total_energy
    SELECT tenant, workflow, step, engine, component, quality, waste, sum(n), sum(uj), sum(low_uj), sum(high_uj)
    FROM (
        SELECT tenant, workflow, step, engine, component, quality, {WASTE} AS waste, 1 AS n,
            prefill_uj + decode_uj AS uj, low_uj, high_uj
        FROM energy CROSS JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
            CROSS JOIN requests ON id = energy.request_id CROSS JOIN runs ON uid = run_uid
        UNION ALL
        SELECT tenant, workflow, step, engine, component, quality, waste, records, uj, low_uj, high_uj FROM day_energy
    )
    GROUP BY tenant, workflow, step, engine, component, quality, waste;

    CREATE TABLE spent (
        tenant TEXT NOT NULL,
        hour INTEGER NOT NULL,
        uj INTEGER NOT NULL,
        PRIMARY KEY (tenant, hour)
    ) WITHOUT ROWID;
    INSERT INTO spent
    SELECT tenant, CAST(coalesce(attempts.ended, dispatched, received) / 3600 AS INTEGER) AS hour,
        sum(prefill_uj + decode_uj)
    FROM energy CROSS JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
        CROSS JOIN requests ON id = energy.request_id CROSS JOIN runs ON uid = run_uid
    GROUP BY tenant, hour;
    """,
)
